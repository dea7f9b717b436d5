"""`text2video`: a prompt becomes a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.runtime.errors import UsageError

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = (("text2video", "wan"),)  # the 3D U-Net, or Wan2.2's 5B
NEEDS = ("prompt",)
DEFAULTS: dict = {}
OPTIONS = ()


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by the job that they belong to."""
    if len(clip.prompts) > 1:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has {len(clip.prompts)} prompts", "text2video takes one")
    (model,) = clip.run.models.values()
    if model.variant == "14b":
        raise UsageError(f"model {model.name} of run {clip.run.name} needs a first frame", "name a 5b, or use recipe v2v")
    seed = next(iter(clip.values.values()))["seed"]
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    pixels = clip.result(f"{clip.id}/{clip.id}.json")
    return {
        "encode": [clip.item("encode", encoded, prompt=clip.prompts[0])],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents)],
        "concat": [clip.item("concat", clip.result(clip.run.film, seed=seed), clips=[pixels])],
    }
