"""`v2v`: continue a video. A new clip starts from its last frame, or its last frames, and its caption is the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.plan.families import families_for
from stages.plan.takes import Takes
from stages.runtime.errors import UsageError
from stages.runtime.options import Options, option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item


class SourceFirst(Options):
    source_first: bool = option(False, "Put the source video in front of the generated clip")


class V2VOptions(SourceFirst, Takes):
    pass


FAMILIES = {
    "model": families_for("model", lambda family: family.fit_first_frame),
    "captioner": families_for("captioner"),
}
NEEDS = ("video",)
DEFAULTS = {"fit": "area"}  # the whole first frame is in the clip, as in the older program
OPTIONS = V2VOptions
FUSE = False


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step."""
    prompt = clip.prompt_to_caption(clip.only_prompt())
    source_first = SourceFirst.of(clip.values["recipe"]).source_first
    check_seam(clip, source_first)
    lossless = clip.generating["lossless"] or source_first
    frames, caption, pixels = clip.step("frames.json"), clip.step("caption.json"), clip.step("clip.json")
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    front = {"source": clip.video} if source_first else {}
    return {
        "extract_frames": [first_frame(clip, frames)],
        "caption_vlm": [clip.item("caption_vlm", caption, video=clip.video, prompt=prompt)],
        "encode": [clip.item("encode", encoded, image=frames, caption=caption)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents, lossless=lossless)],
        "concat": [clip.film_item(clip.result(clip.run.film, seed=clip.generating["seed"]), pixels, **front)],
    }


def first_frame(clip: Clip, output: str, video: str = "", label: str = "") -> Item:
    """The item that extracts the last frame of the source, or more if the model reads them, at a size that it accepts."""
    fit, model = clip.generator.fit_first_frame, clip.run.generator
    assert fit is not None  # FAMILIES holds only families with this function
    fitted = fit(model.variant, clip.generating)
    if fitted is None:
        remedy = "name a model that continues a first frame, or use recipe text2video"
        raise UsageError(f"model {model.name} of run {clip.run.name} takes no first frame", remedy)
    return clip.item("extract_frames", output, label=label, video=video or clip.video, **{"select": "last", **fitted})


def check_seam(clip: Clip, joined: bool) -> None:
    """Raise UsageError for a joined clip of one frame.

    The film leaves out the first frame of a joined clip, where that repeats the frame before it.
    """
    if joined and clip.generating["num_frames"] == 1:
        raise UsageError(
            f"clip {clip.id} of run {clip.run.name} has num_frames 1", "a clip that is joined needs more than one frame"
        )
