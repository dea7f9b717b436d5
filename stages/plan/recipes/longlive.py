"""`longlive`: a video and its prompt fill a cache, and further prompts drive what follows; also prompts alone."""

from __future__ import annotations

from string import Formatter
from typing import TYPE_CHECKING

from stages.runtime.errors import UsageError
from stages.runtime.options import Option

if TYPE_CHECKING:
    from stages.plan.resolve import Clip
    from stages.runtime.items import Item

FAMILIES = ("longlive", "vlm")
NEEDS = ()
DEFAULTS: dict = {}
OPTIONS = (
    Option("prompt1", str, "", "What the source video shows; without it the video is captioned", ()),
    Option("prompt2", str, "", "What follows it; prompts for several, each from its switch on", ()),
    Option("num_samples", int, 1, "Films of each clip; sample j has seed + j", (), "films", minimum=1, maximum=100),
)


def items(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by the job that they belong to."""
    recipe, values = clip.values["recipe"], clip.values["longlive"]
    first, *further = following(clip)
    encoded = clip.step("encoded.safetensors")
    jobs: dict[str, list[Item]] = {}
    source = {}
    if clip.video:
        frames, caption = clip.step("frames.json"), clip.step("caption.json")
        looked_at = {"select": "first", "count": values["num_conditioning_frames"], "size": values["size"]}
        jobs["extract_frames"] = [clip.item("extract_frames", frames, video=clip.video, **looked_at)]
        jobs["caption_vlm"] = [clip.item("caption_vlm", caption, video=clip.video, prompt=recipe["prompt1"])]
        source = {"image": frames, "caption": caption}
    jobs["encode"] = [clip.item("encode", encoded, prompt=first, next_prompts=further, **source)]
    for stage in ("generate", "decode", "concat"):
        jobs[stage] = []
    for sample in range(recipe["num_samples"]):
        number = f".{sample}" if recipe["num_samples"] > 1 else ""
        label, seed = number.replace(".", "sample"), values["seed"] + sample
        latents, pixels = clip.step(f"latents{number}.safetensors"), clip.result(f"{clip.id}/{clip.id}{number}.json")
        film = clip.result(film_name(clip), seed=seed, sample=sample, model_type="lora" if values["lora"] else "regular")
        jobs["generate"].append(clip.item("generate", latents, label=label, encoded=encoded, seed=seed))
        jobs["decode"].append(clip.item("decode", pixels, label=label, latents=latents))
        jobs["concat"].append(clip.item("concat", film, label=label, clips=[pixels]))
    return jobs


def following(clip: Clip) -> list[str]:
    """The prompts of what is made, in order. Raises UsageError."""
    recipe, switches = clip.values["recipe"], clip.values["longlive"]["switch_frame_indices"]
    prompts = [recipe["prompt2"]] if recipe["prompt2"] else list(clip.prompts)
    if recipe["prompt1"] and not clip.video:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} has a prompt1 and no video", "give video, or prompts alone")
    if not prompts:
        raise UsageError(f"clip {clip.id} of run {clip.run.name} says nothing of what is to be made", "give prompt2")
    if len(switches) != len(prompts) - 1:
        raise UsageError(
            f"clip {clip.id} of run {clip.run.name} has {len(prompts)} prompts and {len(switches)} switch_frame_indices",
            "give one for each prompt but the first, in latent frames from the film's start",
        )
    return prompts


def film_name(clip: Clip) -> str:
    """The run's template; where a clip has several films it is told which is which."""
    template = clip.run.film
    fields = {field for _, field, _, _ in Formatter().parse(template)}
    if clip.values["recipe"]["num_samples"] > 1 and not fields & {"sample", "seed"}:
        return f"{template.removesuffix('.mp4')}_{{sample}}.mp4"
    return template
