"""`chain`: `v2v` again and again, each link from the last frame of the one before, joined into one film."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.plan.names import template_fault
from stages.plan.recipes.v2v import SOURCE_FIRST, caption_item, check_seam, first_frame
from stages.runtime.errors import UsageError
from stages.runtime.options import Option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = ("wan", "vlm")
NEEDS = ("video",)
DEFAULTS = {"prefix": "continue video"}
OPTIONS = (
    SOURCE_FIRST,
    Option("links", int, 12, "Number of links", (), "clips", minimum=1, maximum=99),
    Option(
        "prompt_mode",
        str,
        "each",
        "Describe each link's own source anew, or keep the first description for all",
        (),
        choices=("each", "first"),
    ),
    Option(
        "link_name",
        str,
        "video_{link:02d}_{clip}.mp4",
        "Template of a link's file name",
        (),
        check=template_fault,
    ),
)


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by the job that they belong to: each stage of each link is one."""
    recipe, seed, links = clip.values["recipe"], clip.values["wan"]["seed"], range(clip.values["recipe"]["links"])
    prompts = prompts_of(clip, len(links))
    check_seam(clip, recipe["source_first"] or len(links) > 1)
    frames = clip.step("frames.json")
    jobs = {"extract_frames": [first_frame(clip, frames)]}
    pixels: list[str] = []
    caption = ""
    for link in links:
        label = f"link{link + 1:02d}"
        video, image = (pixels[-1], pixels[-1]) if pixels else (clip.video, frames)
        if not caption or len(clip.prompts) > 1 or (recipe["prompt_mode"] == "each" and not clip.prompts):
            caption = clip.step(f"{label}/caption.json")
            jobs[f"caption_vlm.{label}"] = [caption_item(clip, video, caption, prompts[link], label)]
        encoded, latents = clip.step(f"{label}/encoded.safetensors"), clip.step(f"{label}/latents.safetensors")
        name = clip.result(f"{clip.id}/{recipe['link_name']}", link=link + 1, seed=seed + link)
        pixels.append(name.removesuffix(".mp4") + ".json")
        jobs[f"encode.{label}"] = [clip.item("encode", encoded, label=label, image=image, caption=caption)]
        jobs[f"generate.{label}"] = [clip.item("generate", latents, label=label, encoded=encoded, seed=seed + link)]
        jobs[f"decode.{label}"] = [clip.item("decode", pixels[-1], label=label, latents=latents, lossless=True)]
    front = {"source": clip.video} if recipe["source_first"] else {}
    names = [clip.video.rpartition("/")[2], *(path.rpartition("/")[2].replace(".json", ".mp4") for path in pixels)]
    film = clip.result(clip.run.film, seed=seed)
    jobs["concat"] = [clip.item("concat", film, clips=pixels, prompts_log=True, names=names, **front)]
    return jobs


def prompts_of(clip: Clip, links: int) -> list[str]:
    """The given prompt of each link, empty where a description is to be made. One prompt serves all links."""
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
