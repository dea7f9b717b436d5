"""`chain`: continue a video again and again. Each link starts from the last frame of the one before; all become one film."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.plan.names import template_fault
from stages.plan.recipes import v2v
from stages.runtime.errors import UsageError
from stages.runtime.options import option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item


class ChainOptions(v2v.SourceFirst):
    links: int = option(12, "Number of links", aliases=("num_videos",), unit="clips", minimum=1, maximum=99)
    prompt_mode: str = option(
        "each", "Caption the source of each link, or use the first caption for all links", choices=("each", "first")
    )
    link_name: str = option("video_{link:02d}_{clip}.mp4", "Template of the file names of links", check=template_fault)


FAMILIES = v2v.FAMILIES
NEEDS = ("video",)
DEFAULTS = {**v2v.DEFAULTS, "prefix": "continue video"}
OPTIONS = ChainOptions
FUSE = True


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step: one step per stage and link."""
    recipe, seed = ChainOptions.of(clip.values["recipe"]), clip.generating["seed"]
    prompts = prompts_of(clip, recipe.links)
    v2v.check_seam(clip, recipe.source_first or recipe.links > 1)
    frames = clip.step("frames.json")
    jobs = {"extract_frames": [v2v.first_frame(clip, frames)]}
    pixels: list[str] = []
    caption = ""
    for link in range(recipe.links):
        label = f"link{link + 1:02d}"
        video, image = (pixels[-1], pixels[-1]) if pixels else (clip.video, frames)
        if not caption or len(clip.prompts) > 1 or (recipe.prompt_mode == "each" and not clip.prompts):
            caption = clip.step(f"{label}/caption.json")
            jobs[f"caption_vlm.{label}"] = [
                clip.item("caption_vlm", caption, label=label, video=video, prompt=prompts[link])
            ]
        encoded, latents = clip.step(f"{label}/encoded.safetensors"), clip.step(f"{label}/latents.safetensors")
        name = clip.result(f"{clip.id}/{recipe.link_name}", link=link + 1, seed=seed + link)
        pixels.append(name.removesuffix(".mp4") + ".json")
        jobs[f"encode.{label}"] = [clip.item("encode", encoded, label=label, image=image, caption=caption)]
        jobs[f"generate.{label}"] = [clip.item("generate", latents, label=label, encoded=encoded, seed=seed + link)]
        jobs[f"decode.{label}"] = [clip.item("decode", pixels[-1], label=label, latents=latents, lossless=True)]
    front = {"source": clip.video} if recipe.source_first else {}
    names = [clip.video.rpartition("/")[2], *(path.rpartition("/")[2].replace(".json", ".mp4") for path in pixels)]
    film = clip.result(clip.run.film, seed=seed)
    jobs["concat"] = [clip.item("concat", film, clips=pixels, prompts_log=True, names=names, **front)]
    return jobs


def prompts_of(clip: Clip, links: int) -> list[str]:
    """The given prompt of each link; "" for a link to be captioned.

    A single prompt is used for all links. Raises UsageError.
    """
    if not clip.prompts:
        return [""] * links
    if len(clip.prompts) == 1:
        return list(clip.prompts) * links
    if len(clip.prompts) != links:
        raise UsageError(
            f"clip {clip.id} of run {clip.run.name} has {len(clip.prompts)} prompts for {links} links",
            "give one for all, or one for each",
        )
    return list(clip.prompts)
