"""`longlive`: continue a video by one or more prompts; also generate a film from prompts alone.

A family reads the beginning of the video, which is then the beginning of its film, or its end, which a film goes on from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.plan.families import families_for
from stages.plan.names import template_fields
from stages.plan.recipes import v2v
from stages.plan.takes import Takes
from stages.runtime.errors import UsageError
from stages.runtime.options import option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item


class LongLiveOptions(Takes):
    prompt1: str = option(
        "",
        "Prompt that describes the source video; without it, the video is captioned. A model that reads only the frames "
        "needs neither",
    )
    prompt2: str = option("", "Prompt of the film after the source video; for several prompts, use prompts")
    num_samples: int = option(1, "Number of films per clip; sample j has seed + j", unit="films", minimum=1, maximum=100)
    ema: bool = option(
        False,
        "The model has the averaged weights, so that model_type in names of films is ema; convert longlive --ema sets this "
        "in the folder of the model",
    )


FAMILIES = {
    "model": families_for("model", lambda family: "next_prompts" in {one.name for one in family.options}),
    "captioner": families_for("captioner"),
}
NEEDS = ()
DEFAULTS: dict = {}
OPTIONS = LongLiveOptions
FUSE = False


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step."""
    recipe, values = LongLiveOptions.of(clip.values["recipe"]), clip.generating
    if recipe.takes > 1 and recipe.num_samples > 1:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has both takes and num_samples", "leave one of them out")
    first, *further = generation_prompts(clip)
    encoded = clip.step("encoded.safetensors")
    model_type = "lora" if values["lora"] else "ema" if recipe.ema else "regular"
    jobs: dict[str, list[Item]] = {}
    source, front = {}, {}
    goes_on = clip.generator.fit_first_frame is not None
    if clip.video and goes_on:
        jobs["extract_frames"] = [v2v.first_frame(clip, clip.step("frames.json"))]
        source, front = {"image": clip.step("frames.json")}, {"source": clip.video}
    elif clip.video:
        frames, caption = clip.step("frames.json"), clip.step("caption.json")
        selection = {"select": "first", "count": values["num_conditioning_frames"], "size": values["size"]}
        jobs["extract_frames"] = [clip.item("extract_frames", frames, video=clip.video, **selection)]
        jobs["caption_vlm"] = [
            clip.item("caption_vlm", caption, video=clip.video, prompt=clip.prompt_to_caption(recipe.prompt1))
        ]
        source = {"image": frames, "caption": caption}
    jobs["encode"] = [clip.item("encode", encoded, prompt=first, next_prompts=further, **source)]
    for stage in ("generate", "decode", "concat"):
        jobs[stage] = []
    for sample in range(recipe.num_samples):
        number = f".{sample}" if recipe.num_samples > 1 else ""
        label, seed = number.replace(".", "sample"), values["seed"] + sample
        latents, pixels = clip.step(f"latents{number}.safetensors"), clip.step(f"clip{number}.json")
        film = clip.result(film_name(clip), seed=seed, sample=sample, model_type=model_type)
        jobs["generate"].append(clip.item("generate", latents, label=label, encoded=encoded, seed=seed))
        lossless = values["lossless"] or bool(front)
        jobs["decode"].append(clip.item("decode", pixels, label=label, latents=latents, lossless=lossless))
        jobs["concat"].append(clip.film_item(film, pixels, label=label, **front))
    return jobs


def generation_prompts(clip: Clip) -> list[str]:
    """The prompts of the generated part, in order. Raises UsageError."""
    recipe, switches = LongLiveOptions.of(clip.values["recipe"]), clip.generating["switch_frame_indices"]
    prompts = [recipe.prompt2] if recipe.prompt2 else list(clip.prompts)
    if recipe.prompt1 and not clip.video:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has a prompt1 and no video", "give video, or prompts alone")
    if not prompts:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has no prompt for the film", "give prompt2")
    if len(switches) != len(prompts) - 1:
        raise UsageError(
            f"clip {clip.id} of run {clip.run.name} has {len(prompts)} prompts and {len(switches)} switch_frame_indices",
            "give one for each prompt but the first, in latent frames from the film's start",
        )
    return prompts


def film_name(clip: Clip) -> str:
    """The run's name template.

    If a clip has several films and the template names neither seed nor sample, the sample is appended.
    """
    template = clip.run.film
    if LongLiveOptions.of(clip.values["recipe"]).num_samples > 1 and not template_fields(template) & {"sample", "seed"}:
        return f"{template.removesuffix('.mp4')}_{{sample}}.mp4"
    return template
