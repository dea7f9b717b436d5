"""Make a clip of an image by DynamiCrafter: python examples/python/dynamicrafter.py

The model is the small one that is shipped. A published one is found in models/dynamicrafter-256 without `model`.
"""

from PIL import Image

from stages.families.dynamicrafter import DynamiCrafterImg2VideoPipeline

pipe = DynamiCrafterImg2VideoPipeline(resolution="256_256", device="auto", model="shapes-dynamicrafter")
image = Image.open("examples/shapes/pictures/0000.png").convert("RGB")
result = pipe(image=image, prompt="an orange ring moving left quickly on a gray background", seed=42)
pipe.save_video(result["videos"], "from_image.mp4", fps=8)
