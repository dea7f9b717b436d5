"""`text2video`: a prompt becomes a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.plan.families import families_for
from stages.plan.takes import Takes
from stages.runtime.errors import UsageError

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = {"model": families_for("model", lambda family: family.from_text)}
NEEDS = ("prompt",)
DEFAULTS: dict = {}
OPTIONS = Takes
FUSE = False


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step."""
    prompt, model = clip.only_prompt(), clip.run.generator
    if model.variant not in clip.generator.from_text:
        remedy = "name a model that generates clips from a prompt alone, or use recipe v2v"
        raise UsageError(f"model {model.name} of run {clip.run.name} needs a first frame", remedy)
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    pixels = clip.step("clip.json")
    return {
        "encode": [clip.item("encode", encoded, prompt=prompt)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents)],
        "concat": [clip.film_item(clip.result(clip.run.film, seed=clip.generating["seed"]), pixels)],
    }
