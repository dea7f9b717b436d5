"""`v2v`: the last frame of a video becomes the first frame of a new clip, and a description of the video its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.models.wan.options import AREA_RULE, MULTIPLE
from stages.runtime.errors import UsageError
from stages.runtime.options import Option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = ("wan", "vlm")
NEEDS = ("video",)
DEFAULTS: dict = {}
SOURCE_FIRST = Option("source_first", bool, False, "Put the source video in front of what is made of it", ())
OPTIONS = (SOURCE_FIRST,)


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by the job that they belong to."""
    wan = clip.values["wan"]
    source_first = clip.values["recipe"]["source_first"]
    if len(clip.prompts) > 1:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has {len(clip.prompts)} prompts", "v2v takes one")
    check_seam(clip, source_first)
    lossless = wan["lossless"] or source_first
    frames, caption, pixels = clip.step("frames.json"), clip.step("caption.json"), clip.step("clip.json")
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    front = {"source": clip.video} if source_first else {}
    return {
        "extract_frames": [first_frame(clip, frames)],
        "caption_vlm": [caption_item(clip, clip.video, caption, clip.prompts[0] if clip.prompts else "")],
        "encode": [clip.item("encode", encoded, image=frames, caption=caption)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents, lossless=lossless)],
        "concat": [clip.item("concat", clip.result(clip.run.film, seed=wan["seed"]), clips=[pixels], **front)],
    }


def first_frame(clip: Clip, output: str) -> Item:
    """The source's last frame, at the size that the model takes."""
    variant = clip.run.models["wan"].variant
    size = {"size": clip.values["wan"]["size"], "multiple": MULTIPLE[variant], "area_rule": AREA_RULE[variant]}
    return clip.item("extract_frames", output, video=clip.video, select="last", **size)


def check_seam(clip: Clip, joined: bool) -> None:
    """Raise UsageError where a clip would vanish in the film: its first frame repeats the one before it."""
    if joined and clip.values["wan"]["frame_num"] == 1:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has frame_num 1", "a clip that is joined needs 5 or more")


def caption_item(clip: Clip, video: str, output: str, prompt: str, label: str = "") -> Item:
    """The prompt of a clip or a link: the one that is given, else a description."""
    return clip.item("caption_vlm", output, label=label, video=video, prompt=prompt)
