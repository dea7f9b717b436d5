"""`fresco`: restyle a whole video. FRESCO translates the keyframes, and propagation the frames between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.plan.families import families_for
from stages.plan.takes import Takes
from stages.runtime.options import option
from stages.runtime.sizes import size_text

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item


class FrescoOptions(Takes):
    size: str = option(
        "512*512",
        "Size of the film: its shorter side is the film's; both sides of the film are multiples of 64",
        form=size_text,
    )


FAMILIES = {"model": ("fresco",), "captioner": families_for("captioner")}
NEEDS = ("video",)
DEFAULTS: dict = {}
OPTIONS = FrescoOptions
FUSE = False
MULTIPLE = 64


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step."""
    prompt = clip.prompt_to_caption(clip.only_prompt())
    recipe, values = FrescoOptions.of(clip.values["recipe"]), clip.generating
    frames, keys, caption = clip.step("frames.json"), clip.step("keys.json"), clip.step("caption.json")
    encoded, latents = clip.step("encoded.safetensors"), clip.step("latents.safetensors")
    source = {"video": clip.video, "size": recipe.size, "fit": "short", "multiple": MULTIPLE}
    edges = values["controlnet_type"] == "canny"
    translated = clip.result(f"{clip.id}/keys.json")
    propagated = [clip.step(f"propagated{part:02d}.json") for part in range(clip.values["media"]["parts"])]
    film = clip.result(clip.run.film, seed=values["seed"])
    return {
        "extract_frames": [
            clip.item("extract_frames", frames, label="all", select="all", **source),
            clip.item("extract_frames", keys, label="keyframes", select="keyframes", canny=edges, **source),
        ],
        "caption_vlm": [clip.item("caption_vlm", caption, video=clip.video, prompt=prompt)],
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
