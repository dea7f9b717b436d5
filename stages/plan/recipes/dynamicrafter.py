"""`dynamicrafter`: an image and a prompt become a clip. An image without a prompt is captioned first."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from stages.plan.families import families_for
from stages.plan.names import part_of_name
from stages.plan.takes import Takes
from stages.runtime.sizes import parse_size

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = {"model": ("dynamicrafter",), "captioner": families_for("captioner")}
NEEDS = ("image",)
DEFAULTS = {"seed": 123}
OPTIONS = Takes
FUSE = False


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step."""
    prompt, values = clip.only_prompt(), clip.generating
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    pixels = clip.step("clip.json")
    jobs: dict[str, list[Item]] = {}
    if prompt:
        text = {"prompt": prompt}
    else:
        text = {"caption": clip.step("caption.json")}
        jobs["caption_vlm"] = [
            clip.item("caption_vlm", text["caption"], video=clip.image, prompt=clip.prompt_to_caption(""))
        ]
    fields = {
        "image": part_of_name(PurePath(clip.image).stem),
        "resolution": parse_size(values["size"])[0],
        "seed": values["seed"],
    }
    return jobs | {
        "encode": [clip.item("encode", encoded, image=clip.image, **text)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents)],
        "concat": [clip.film_item(clip.result(clip.run.film, **fields), pixels)],
    }
