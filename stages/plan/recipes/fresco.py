"""`fresco`: a whole video in a new look, keyframes by FRESCO and the frames between them by propagation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.plan.recipes.v2v import caption_item
from stages.runtime.errors import UsageError
from stages.runtime.options import Option
from stages.runtime.size import size_text

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = ("fresco", "vlm")
NEEDS = ("video",)
DEFAULTS: dict = {}
OPTIONS = (
    Option(
        "size", str, "512*512", "Its shorter side is that of the film; both sides are multiples of 64", (), form=size_text
    ),
)
MULTIPLE = 64


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by the job that they belong to."""
    if len(clip.prompts) > 1:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has {len(clip.prompts)} prompts", "fresco takes one")
    recipe, values = clip.values["recipe"], clip.values["fresco"]
    frames, keys, caption = clip.step("frames.json"), clip.step("keys.json"), clip.step("caption.json")
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    looked_at = {"video": clip.video, "size": recipe["size"], "fit": "short", "multiple": MULTIPLE}
    edges = values["controlnet_type"] == "canny"
    translated = clip.result(f"{clip.id}/keys.json")
    propagated = [clip.step(f"propagated{part:02d}.json") for part in range(clip.values["media"]["parts"])]
    film = clip.result(clip.run.film, seed=values["seed"])
    return {
        "extract_frames": [
            clip.item("extract_frames", frames, label="all", select="all", **looked_at),
            clip.item("extract_frames", keys, label="keyframes", select="keyframes", canny=edges, **looked_at),
        ],
        "caption_vlm": [caption_item(clip, clip.video, caption, clip.prompts[0] if clip.prompts else "")],
        "encode": [clip.item("encode", encoded, image=keys, caption=caption)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", translated, latents=latents)],
        **{
            f"propagate.part{part:02d}": [
                clip.item("propagate", output, label=f"part{part}", frames=frames, keys=translated, part=part)
            ]
            for part, output in enumerate(propagated)
        },
        "concat": [clip.item("concat", film, clips=propagated, source=clip.video)],
    }
