"""The table of stages: inputs and output of each. The plan, the command lines, the item loop and the docs all use it."""

from dataclasses import dataclass

PROMPT = "prompt"
NESTED_EXTRAS = ("frames", "caption", "diffusion")  # optional dependencies, each with those before it


@dataclass(frozen=True)
class Input:
    """An input of a stage. `kinds` are the allowed artifact kinds; "file" stands for a user's own media file.

    With `may_fail` the stage is given a failure in the place of an artifact, and decides what that means. Any other failure
    is passed on.
    """

    name: str
    kinds: tuple[str, ...]
    help: str
    required: bool = True
    many: bool = False
    may_fail: bool = False


@dataclass(frozen=True)
class Stage:
    """A stage.

    `version` is increased when the results change. `extra` names the optional dependencies in pyproject.toml.
    """

    name: str
    version: int
    inputs: tuple[Input, ...]  # the first one is the command's positional argument
    writes: tuple[str, ...]  # the kinds of its output
    help: str
    extra: str
    model: bool = True
    minutes: int = 2  # upper estimate per item, for a scheduler
    follows: bool = False  # can start before its input is complete
    repeatable: str = ""  # the prompt, for which a terminal asks, or the first input: may be repeated, one item per value


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "extract_frames",
            1,
            (Input("video", ("file", "clip"), "the video from which frames are extracted, or an image"),),
            ("frames",),
            "Extract frames from a video: upright, with square pixels, at the requested size.",
            "frames",
            model=False,
            repeatable="video",
        ),
        Stage(
            "caption_vlm",
            2,
            (Input("video", ("file", "clip"), "the video or image to describe"),),
            ("caption",),
            "Describe a video or an image with a vision-language model, or use a given prompt.",
            "caption",
            repeatable="video",
        ),
        Stage(
            "encode",
            2,
            (
                Input(
                    "image",
                    ("frames", "clip", "file"),
                    "the first frame: frames, a clip (its last frame) or an image; none for text to video",
                    required=False,
                ),
                Input("caption", ("caption",), "the prompt, from caption_vlm", required=False),
                Input("past", ("latents",), "the latents of the clip that the new one goes on from", required=False),
            ),
            ("encoded",),
            "Encode a prompt, and a first frame if there is one, into the inputs of the denoiser.",
            "diffusion",
            repeatable=PROMPT,
        ),
        Stage(
            "generate",
            1,
            (Input("encoded", ("encoded",), "the output of encode"),),
            ("latents",),
            "Denoise an encoded condition to the latents of a new clip.",
            "diffusion",
            minutes=90,
            repeatable="encoded",
        ),
        Stage(
            "propagate",
            1,
            (
                Input("frames", ("frames",), "all frames of the clip, from extract_frames --select all"),
                Input("keys", ("frames", "clip"), "translated keyframes of the same clip, with their indices"),
            ),
            ("propagated",),
            "Propagate translated keyframes to the frames between them.",
            "propagate",
            model=False,
            minutes=30,
        ),
        Stage(
            "decode",
            2,
            (Input("latents", ("latents",), "the output of generate"),),
            ("clip",),
            "Decode latents to pixels: a video and its lossless last frame.",
            "diffusion",
            minutes=10,
            follows=True,
            repeatable="latents",
        ),
        Stage(
            "pick",
            1,
            (
                Input(
                    "clips", ("clip",), "the takes: clips of the same kind, of which one is chosen", many=True, may_fail=True
                ),
                Input(
                    "scores",
                    ("scores",),
                    "the scores of each take, in the order of the takes",
                    required=False,
                    many=True,
                    may_fail=True,
                ),
                Input(
                    "latents",
                    ("latents",),
                    "the latents of each take, of which those of the chosen one are written in the place of its clip",
                    required=False,
                    many=True,
                    may_fail=True,
                ),
            ),
            ("clip", "latents"),
            "Choose one of several takes: the one with the best figure of the scores, or the one that is named.",
            "frames",
            model=False,
        ),
        Stage(
            "concat",
            3,
            (
                Input("clips", ("clip", "propagated"), "the clips to join, in order", many=True),
                Input(
                    "source",
                    ("file",),
                    "the video that comes first; for propagated frames, the video that supplies the sound",
                    required=False,
                ),
            ),
            ("film",),
            "Join clips into one film, encoded once and without duplicate frames at the seams.",
            "frames",
            model=False,
            minutes=10,
        ),
        Stage(
            "score",
            1,
            (
                Input("film", ("film", "clip", "file"), "the film, the index of a clip, or any video"),
                Input("source", ("file",), "the video that the film continues or shows in a new look", required=False),
            ),
            ("scores",),
            "Measure a film: faulty frames, motion, flicker, seams, drift, and likeness to a reference.",
            "frames",
            minutes=5,
            repeatable="film",
        ),
    )
}


def stage_of(step: str) -> Stage:
    """The stage that does the work of a step, which is the stage's name or STAGE.LABEL. Raises KeyError for another text."""
    return STAGES[step.partition(".")[0]]
