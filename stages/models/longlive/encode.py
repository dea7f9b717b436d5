"""Encode for LongLive: prompts and the first frames of a source become embeddings and condition latents."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stages.media.members import read_member
from stages.models.longlive.options import FAMILY, LATENT, Lengths, check_lengths, lengths, pixel_frames
from stages.models.shared.origin import check_beyond, model_fields
from stages.models.shared.wan.repository import load_encoders
from stages.models.shared.wan.vae import encoded
from stages.models.shared.words import warn_of_unknown_words
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.worker import Work, Worker


class Encode(Worker):
    """Writes `encoded`: prompt_embeds [P, L, D], and image_latents float32 [1, C, T, h, w] of a source."""

    def check(self, work: Work) -> None:
        check_lengths(work.options)
        prompts, switches = prompts_of(work), work.options["switch_frame_indices"]
        if len(switches) != len(work.options["next_prompts"]):
            raise ItemError(
                f"item {work.item.id} has {len(switches)} switch_frame_indices for {len(prompts)} prompts",
                "give one for each of next_prompts",
            )
        width, height = size_of(work)
        check_beyond(FAMILY, self.model, {**work.options, "size": f"{width}*{height}"})
        used = lengths_of(work)
        if sorted(set(switches)) != switches or (switches and not used.given < switches[0]):
            raise ItemError(
                f"the switch_frame_indices of {work.item.id} are {switches}, after {used.given} {LATENT} of the source",
                "they rise, and the first is behind the source",
            )
        if switches and switches[-1] >= work.options["num_output_frames"]:
            raise ItemError(
                f"the last of switch_frame_indices of {work.item.id} is {switches[-1]}",
                f"the film has {work.options['num_output_frames']} {LATENT}",
            )

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load tokenizer, text encoder and VAE. Raises JobError."""
        from diffusers import WanPipeline

        self.pipe = load_encoders(WanPipeline, self.model, options, self.device)

    @torch.no_grad()
    def run(self, work: Work, phase: str) -> None:
        options, prompts, used = work.options, prompts_of(work), lengths_of(work)
        for prompt in prompts:
            warn_of_unknown_words(self.pipe.tokenizer, prompt, work.item.id)
        width, height = size_of(work)
        embeds = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=options["max_sequence_length"],
            device=self.device,
        )[0]
        tensors = {"prompt_embeds": embeds}
        if used.given:
            tensors["image_latents"] = self._latents(work.inputs["image"], used.used)
        first = [used.given] if used.given else []  # where prompt2 begins
        fields = {
            **model_fields(self.model, work),
            "width": width,
            "height": height,
            "num_frames": pixel_frames(options["num_output_frames"]),
            "prompt": prompts[-1],
            "negative_prompt": "",
            "raw": raw_of(work),
            "prompts": prompts,
            "switches": [*first, *options["switch_frame_indices"]],
            "latent_frames": options["num_output_frames"],
            "block": options["num_frame_per_block"],
            "source_frames": used.used,
        }
        log("lengths", item=work.item.id, **{k: fields[k] for k in ("source_frames", "latent_frames", "num_frames")})
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ItemError(f"{name} of {work.item.id} has NaN or infinite numbers", "try --dtype bfloat16 or float32")
        write_tensors(work.output, "encoded", fields, tensors)

    def _latents(self, frames: Artifact, count: int) -> torch.Tensor:
        """Normalised latents [1, C, T, h, w] of the first frames."""
        pictures = np.stack([read_member(frames, one["suffix"]) for one in frames.fields["frames"][:count]])
        video = torch.from_numpy(pictures).permute(3, 0, 1, 2)[None].to(self.device, torch.float32) / 127.5 - 1
        return encoded(self.pipe.vae, video)


def prompts_of(work: Work) -> list[str]:
    """The prompts in order; the first of them tells of the source, where there is one. Raises ItemError."""
    following = [work.options["prompt"], *work.options["next_prompts"]]
    if not all(following):
        raise ItemError(f"item {work.item.id} has no prompt for what is to be made", "add --prompt TEXT")
    if "image" not in work.inputs:
        return following
    caption = work.inputs.get("caption")
    of_source = work.options["prompt1"] or (caption.fields["prompt"] if caption else "")
    if not of_source:
        raise ItemError(
            f"item {work.item.id} has no prompt for its source", "add --prompt1 TEXT, or --caption FILE of caption_vlm"
        )
    return [of_source, *following]


def raw_of(work: Work) -> str:
    """What the captioner said of the source."""
    caption = work.inputs.get("caption")
    return caption.fields["raw"] if caption and not work.options["prompt1"] else ""


def lengths_of(work: Work) -> Lengths:
    """How much of the source is used. Raises ItemError for one that is too short, too long or no frames at all."""
    source, options = work.inputs.get("image"), work.options
    if source is None:
        return Lengths(0, 0)
    if not isinstance(source, Artifact) or source.kind != "frames":
        raise ItemError(
            f"{getattr(source, 'path', source)} is a picture and not the frames of a video", "use extract_frames"
        )
    block, there = options["num_frame_per_block"], len(source.fields["frames"])
    used = lengths(min(there, options["num_conditioning_frames"]), block)
    if not used.given:
        raise ItemError(
            f"the source of {work.item.id} has {min(there, options['num_conditioning_frames'])} frames to look at",
            f"{pixel_frames(block)} are enough for a block of {block} {LATENT}",
        )
    if used.given >= options["num_output_frames"]:
        raise ItemError(
            f"the source of {work.item.id} fills {used.given} {LATENT} and the film has {options['num_output_frames']}",
            "raise num_output_frames or lower num_conditioning_frames",
        )
    return used


def size_of(work: Work) -> tuple[int, int]:
    """Width and height: those of the source's frames, else of the option."""
    if (source := work.inputs.get("image")) is not None and isinstance(source, Artifact):
        return source.fields["width"], source.fields["height"]
    width, height = work.options["size"].split("*")
    return int(width), int(height)
