"""Continue a video by Wan2.2 TI2V-5B, then make clips of an image and of a prompt: python examples/python/wan_v2v_5b.py

The models are the small ones that are shipped. For the public ones, leave the names of the models out: WanV2V5B().
"""

from PIL import Image

from stages.families.wan import WanV2V5B

pipe = WanV2V5B("shapes-wan-5b", vlm_path="shapes-internvl", device="auto")
result = pipe.v2v("examples/shapes/videos/0000.mp4", seed=42)
print("the captioner's description:", result["prompt"])
pipe.save_video(result["videos"], "continued.mp4")

image = Image.open("examples/shapes/pictures/0000.png")
result = pipe.generate("an orange ring moving left quickly on a gray background", image, seed=42)
pipe.save_video(result["videos"], "from_image.mp4")

result = pipe.generate("a red circle moving right slowly on a gray background", seed=42)
pipe.save_video(result["videos"], "from_prompt.mp4")
