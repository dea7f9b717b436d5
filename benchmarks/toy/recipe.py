"""`toy`: a clip of one colour, as large as the video."""

FAMILIES = ("toy",)
NEEDS = ("video",)
DEFAULTS = {"brighter": 10}
OPTIONS = ()


def items(clip):
    frames, encoded, latents, pixels = map(clip.step, ("frames.json", "e.safetensors", "l.safetensors", "clip.json"))
    return {
        "extract_frames": [clip.item("extract_frames", frames, video=clip.video)],
        "encode": [clip.item("encode", encoded, image=frames)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents)],
        "concat": [clip.item("concat", clip.result(clip.run.film), clips=[pixels])],
    }
