"""The stages: what each reads and writes. One table for the plan, the command lines, the item loop and the docs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Input:
    """A file that a stage reads: `kinds` are the artifacts it may be, "file" stands for a user's own media file."""

    name: str
    kinds: tuple[str, ...]
    help: str
    required: bool = True
    many: bool = False


@dataclass(frozen=True)
class Stage:
    """`version` is raised when the stage's results change. `extra` names the dependencies in pyproject.toml."""

    name: str
    version: int
    inputs: tuple[Input, ...]  # the first one is the command's positional argument
    writes: str
    help: str
    extra: str
    model: bool = True
    minutes: int = 2  # that a scheduler gives an item, generously
    follows: bool = False  # may begin before its input is whole, to show what comes of it
    asks: str = ""  # the option that a person may give many times, an item each, and is asked for at a terminal


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "extract_frames",
            1,
            (Input("video", ("file", "clip"), "the video to take frames from"),),
            "frames",
            "Take frames from a video, upright, in square pixels, at the size wanted.",
            "frames",
            model=False,
        ),
        Stage(
            "caption_vlm",
            2,
            (Input("video", ("file", "clip"), "the video, or the picture, to describe"),),
            "caption",
            "Describe a video or a picture with a vision-language model, or take the prompt that is given.",
            "caption",
        ),
        Stage(
            "encode",
            2,
            (
                Input(
                    "image",
                    ("frames", "clip", "file"),
                    "the first frame: frames, a clip (its last frame), a picture; none for text to video",
                    required=False,
                ),
                Input("caption", ("caption",), "the prompt, as caption_vlm wrote it", required=False),
            ),
            "encoded",
            "Turn a prompt, and a first frame if there is one, into all that the denoiser needs.",
            "diffusion",
            asks="prompt",
        ),
        Stage(
            "generate",
            1,
            (Input("encoded", ("encoded",), "what encode wrote"),),
            "latents",
            "Denoise: from an encoded condition to the latents of a new clip.",
            "diffusion",
            minutes=90,
        ),
        Stage(
            "propagate",
            1,
            (
                Input("frames", ("frames",), "every frame of the clip, as extract_frames --select all wrote them"),
                Input("keys", ("frames", "clip"), "translated frames of the same clip, each by its index there"),
            ),
            "propagated",
            "Carry translated keyframes to the frames between them.",
            "propagate",
            model=False,
            minutes=30,
        ),
        Stage(
            "decode",
            1,
            (Input("latents", ("latents",), "what generate wrote"),),
            "clip",
            "Turn latents into pixels: a video and its lossless last frame.",
            "diffusion",
            minutes=10,
            follows=True,
        ),
        Stage(
            "concat",
            2,
            (
                Input("clips", ("clip", "propagated"), "the clips to join, in order", many=True),
                Input(
                    "source",
                    ("file",),
                    "the video that goes in front; of propagated frames that whose sound they are shown with",
                    required=False,
                ),
            ),
            "film",
            "Join clips into one film without the doubled seam frames, encoded once.",
            "frames",
            model=False,
            minutes=10,
        ),
    )
}
