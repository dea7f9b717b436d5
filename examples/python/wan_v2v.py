"""Continue a video by Wan2.2 I2V-A14B, then make a clip of an image: python examples/python/wan_v2v.py

The models are the small ones that are shipped. For the public ones, leave the names of the models out: WanV2V().
"""

from PIL import Image

from stages.families.wan import WanV2V

pipe = WanV2V("shapes-wan-14b", vlm_path="shapes-internvl", device="auto")
result = pipe.v2v("examples/shapes/videos/0000.mp4", seed=42)
print("the captioner's description:", result["prompt"])
pipe.save_video(result["videos"], "continued.mp4")

image = Image.open("examples/shapes/pictures/0000.png")
result = pipe.generate("an orange ring moving left quickly on a gray background", image, seed=42)
pipe.save_video(result["videos"], "from_image.mp4")
