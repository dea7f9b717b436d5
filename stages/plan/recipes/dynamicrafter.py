"""`dynamicrafter`: a picture and a prompt become a clip; a picture without a prompt is described first."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from stages.plan.names import part_of_name
from stages.runtime.errors import UsageError
from stages.runtime.size import parse_size

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = ("dynamicrafter", "vlm")
NEEDS = ("image",)
DEFAULTS = {"seed": 123}
OPTIONS = ()


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by the job that they belong to."""
    if len(clip.prompts) > 1:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has {len(clip.prompts)} prompts", "dynamicrafter takes one")
    values = clip.values["dynamicrafter"]
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    pixels = clip.result(f"{clip.id}/{clip.id}.json")
    jobs: dict[str, list[Item]] = {}
    if clip.prompts:
        told = {"prompt": clip.prompts[0]}
    else:
        told = {"caption": clip.step("caption.json")}
        jobs["caption_vlm"] = [clip.item("caption_vlm", told["caption"], video=clip.image)]
    fields = {
        "image": part_of_name(PurePath(clip.image).stem),
        "resolution": parse_size(values["size"])[0],
        "seed": values["seed"],
    }
    return jobs | {
        "encode": [clip.item("encode", encoded, image=clip.image, **told)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents)],
        "concat": [clip.item("concat", clip.result(clip.run.film, **fields), clips=[pixels])],
    }
