"""Encode for Helios: prompts become embeddings, and a first frame or the end of a video the moments of its latents.

The pipeline draws its noise in a fixed order and begins with the VAE's posterior. So `encoded` has the moments of the
posterior, mean and logarithm of the variance, and `generate` draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from stages.families.helios.options import FAMILY, LATENT, EncodeOptions, chunks, clip_frames, window
from stages.families.shared.item import (
    check_against_model,
    check_finite,
    check_lineage,
    check_past,
    encoded_fields,
    last_frames,
    past_of,
    require_prompt,
    size_of,
)
from stages.families.shared.text_then_image import TEXT
from stages.families.shared.wan.encode import WanEncode
from stages.families.shared.wan.repository import clean
from stages.families.shared.word_tokenizer import warn_of_unread
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.sizes import parse_size
from stages.runtime.worker import Work

PAST = ("history", "first_latent")  # of the latents of a clip, for the next one


class Encode(WanEncode[EncodeOptions]):
    """Writes `encoded`: prompt_embeds [P, L, D] of P prompts, negative_prompt_embeds [1, L, D].

    With a source also image_moments [1, 2 C, 1, h, w] of its first frame, and video_moments [1, 2 C, T, h, w] of the chunks
    at its end; of a single frame, those of the chunk in which it stands still. With a past instead its history
    [1, C, N, h, w] and first_latent [1, C, 1, h, w], as they are.
    """

    kind = "HeliosPipeline"

    def check(self, work: Work[EncodeOptions]) -> None:
        options = work.options
        require_prompt(work)
        check_past(work, FAMILY, self.model.variant)
        if past := past_of(work):
            check_lineage(past, self.model)
            if missing := [name for name in PAST if name not in past.shapes]:
                raise ItemError(f"{past.path} lacks {missing[0]}", "make it again with generate")
            if "image" in work.inputs:
                raise ItemError(
                    f"item {work.item.id} has a past and an image",
                    "leave one out: the past knows how its film began",
                )
        if len(options.switch_frame_indices) != len(options.next_prompts):
            raise ItemError(
                f"item {work.item.id} has {len(options.switch_frame_indices)} switch_frame_indices "
                f"for {len(options.next_prompts)} next_prompts",
                "give one for each",
            )
        latents = chunks(options.num_frames, options.num_latent_frames_per_chunk) * options.num_latent_frames_per_chunk
        switches = options.switch_frame_indices
        if sorted(set(switches)) != switches or (switches and switches[-1] > latents - options.num_latent_frames_per_chunk):
            raise ItemError(
                f"the switch_frame_indices of {work.item.id} are {switches} and the clip has {latents} {LATENT}",
                "list them in rising order, the last one before the last chunk",
            )
        width, height = film_size(work)
        check_against_model(FAMILY, self.model, {**options.values(), "size": f"{width}*{height}"})

    def uses_model(self, work: Work[EncodeOptions]) -> bool:
        return super().uses_model(work) and (self.phase == TEXT or "image" in work.inputs)

    def _pipeline(self, **parts: Any) -> Any:
        from diffusers import HeliosPipeline

        absent = dict.fromkeys(("tokenizer", "text_encoder", "vae", "scheduler", "transformer"))
        return HeliosPipeline(**{**absent, **parts})

    def encode_text(self, work: Work[EncodeOptions]) -> dict[str, torch.Tensor]:
        prompts, length = prompts_of(work), work.options.max_sequence_length
        for prompt in prompts:
            warn_of_unread(self.pipe.tokenizer, clean(prompt), length, work.item.id)
        return {
            "prompt_embeds": torch.cat([self.embed(prompt, length) for prompt in prompts]),
            "negative_prompt_embeds": self.embed(work.options.negative_prompt, length),
        }

    def write(self, work: Work[EncodeOptions], texts: Mapping[str, torch.Tensor]) -> None:
        options, block = work.options, work.options.num_latent_frames_per_chunk
        count, (_, raw) = chunks(options.num_frames, block), require_prompt(work)
        source = frames_of(work)
        fields = encoded_fields(
            self.model,
            work,
            film_size(work),
            clip_frames(count, block, options.whole_chunks),
            prompts_of(work)[0],
            raw,
            prompts=prompts_of(work),
            switches=options.switch_frame_indices,
            latent_frames=count * block,
            block=block,
            source_frames=len(source),
        )
        if fields["num_frames"] != options.num_frames:
            log("lengths", item=work.item.id, asked=options.num_frames, num_frames=fields["num_frames"])
        tensors = {**texts, **(self._moments(source, window(block)) if source else {})}
        if past := past_of(work):
            made = past.tensors()
            tensors |= {name: made[name] for name in PAST}
        for name, tensor in tensors.items():
            check_finite(tensor, f"{name} of {work.item.id}")
        write_tensors(work.output, "encoded", fields, tensors)

    def _moments(self, source: list[Image.Image], length: int) -> dict[str, torch.Tensor]:
        """The moments of the frames of a source: of its first one, and of chunks of `length` counted from its end."""
        width, height = source[0].size
        pixels = [self.pipe.video_processor.preprocess(frame, height=height, width=width) for frame in source]
        video = torch.stack(pixels, dim=2)  # [1, 3, F, H, W] in -1..1
        kept = len(source) // length * length
        windows = video[:, :, -kept:].split(length, dim=2) if kept else [video.repeat(1, 1, length, 1, 1)]
        return {
            "image_moments": self._posterior(video[:, :, :1]),
            "video_moments": torch.cat([self._posterior(one) for one in windows], dim=2),
        }

    def _posterior(self, video: torch.Tensor) -> torch.Tensor:
        return self.pipe.vae.encode(video.to(self.device)).latent_dist.parameters.cpu()


def prompts_of(work: Work[EncodeOptions]) -> list[str]:
    """The prompts in order. Raises ItemError without one."""
    return [require_prompt(work)[0], *work.options.next_prompts]


def frames_of(work: Work[EncodeOptions]) -> list[Image.Image]:
    """The last frames of the source, at most num_conditioning_frames; the last one alone if they make no chunk."""
    source, count = work.optional("image"), work.options.num_conditioning_frames
    if source is None:
        return []
    images = last_frames(source, count)
    if 1 < len(images) < (least := window(work.options.num_latent_frames_per_chunk)):
        reason = f"its source has {len(images)} frames, fewer than the {least} of a chunk: only the last one is read"
        log("warning", item=work.item.id, reason=reason)
        images = images[-1:]
    return [Image.fromarray(image) for image in images]


def film_size(work: Work[EncodeOptions]) -> tuple[int, int]:
    """Width and height of the source's frames, or of the past's, else of option size."""
    source = work.optional("image") or past_of(work)
    return size_of(source) if source else parse_size(work.options.size)
