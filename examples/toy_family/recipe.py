"""`toy`: a clip of one tone in the size of the video."""

from stages.runtime.options import Options

FAMILIES = {"model": ("toy",)}
NEEDS = ("video",)
DEFAULTS = {"brighter": 10}
OPTIONS = Options
FUSE = False


def items(clip):
    frames, encoded, latents, pixels = map(clip.step, ("frames.json", "e.safetensors", "l.safetensors", "clip.json"))
    return {
        "extract_frames": [clip.item("extract_frames", frames, video=clip.video)],
        "encode": [clip.item("encode", encoded, image=frames)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents)],
        "concat": [clip.item("concat", clip.result(clip.run.film), clips=[pixels])],
    }
