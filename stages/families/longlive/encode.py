"""Encode for LongLive: turns prompts and the first frames of a source video into embeddings and latents."""

from collections.abc import Mapping

import numpy as np
import torch

from stages.families.longlive.options import FAMILY, LATENT, EncodeOptions, Lengths, check_lengths, lengths, pixel_frames
from stages.families.shared.item import check_against_model, check_finite, check_past, encoded_fields
from stages.families.shared.pixels import to_float
from stages.families.shared.text_then_image import TEXT
from stages.families.shared.wan.encode import WanEncode
from stages.families.shared.wan.repository import clean
from stages.families.shared.wan.vae import encode_video
from stages.families.shared.word_tokenizer import warn_of_unread
from stages.media.members import read_member
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.sizes import parse_size
from stages.runtime.worker import Work


class Encode(WanEncode[EncodeOptions]):
    """Writes `encoded`: prompt_embeds [P, L, D] of P prompts, and with a source image_latents, float32 [1, C, T, h, w]."""

    kind = "WanPipeline"

    def check(self, work: Work[EncodeOptions]) -> None:
        check_lengths(work.options.values())
        check_past(work, FAMILY, self.model.variant)
        prompts, switches = prompts_of(work), work.options.switch_frame_indices
        if len(switches) != len(work.options.next_prompts):
            raise ItemError(
                f"item {work.item.id} has {len(switches)} switch_frame_indices for {len(prompts)} prompts",
                "give one for each of next_prompts",
            )
        width, height = size_of(work)
        check_against_model(FAMILY, self.model, {**work.options.values(), "size": f"{width}*{height}"})
        source = lengths_of(work)
        if sorted(set(switches)) != switches or (switches and not source.latent_frames < switches[0]):
            raise ItemError(
                f"the switch_frame_indices of {work.item.id} are {switches}, "
                f"and its source fills {source.latent_frames} {LATENT}",
                "list them in rising order, the first one after the source",
            )
        if switches and switches[-1] >= work.options.num_output_frames:
            raise ItemError(
                f"the last of switch_frame_indices of {work.item.id} is {switches[-1]}",
                f"take less than num_output_frames, which is {work.options.num_output_frames} {LATENT}",
            )

    def uses_model(self, work: Work[EncodeOptions]) -> bool:
        return super().uses_model(work) and (self.phase == TEXT or "image" in work.inputs)

    def encode_text(self, work: Work[EncodeOptions]) -> dict[str, torch.Tensor]:
        prompts, length = prompts_of(work), work.options.max_sequence_length
        for prompt in prompts:
            warn_of_unread(self.pipe.tokenizer, clean(prompt), length, work.item.id)
        return {"prompt_embeds": self.embed(prompts, length)}

    def write(self, work: Work[EncodeOptions], texts: Mapping[str, torch.Tensor]) -> None:
        options, prompts, source = work.options, prompts_of(work), lengths_of(work)
        tensors = {**texts}
        if source.latent_frames:
            tensors["image_latents"] = self._latents(work.artifact("image"), source.frames)
            self._warn_of_short_source(work)
        after_source = [source.latent_frames] if source.latent_frames else []  # the second prompt begins there
        fields = encoded_fields(
            self.model,
            work,
            size_of(work),
            pixel_frames(options.num_output_frames),
            prompts[-1],
            raw_of(work),
            prompts=prompts,
            switches=[*after_source, *options.switch_frame_indices],
            latent_frames=options.num_output_frames,
            block=options.num_frame_per_block,
            source_frames=source.frames,
        )
        log("lengths", item=work.item.id, **{k: fields[k] for k in ("source_frames", "latent_frames", "num_frames")})
        for name, tensor in tensors.items():
            check_finite(tensor, f"{name} of {work.item.id}")
        write_tensors(work.output, "encoded", fields, tensors)

    def _warn_of_short_source(self, work: Work[EncodeOptions]) -> None:
        """Log a source that has fewer frames than num_conditioning_frames asks for."""
        found, asked = len(work.artifact("image").fields["frames"]), work.options.num_conditioning_frames
        if found < asked:
            reason = f"its source has {found} frames, fewer than num_conditioning_frames, which is {asked}"
            log("warning", item=work.item.id, reason=reason)

    def _latents(self, frames: Artifact, count: int) -> torch.Tensor:
        """Normalised latents [1, C, T, h, w] of the first `count` frames."""
        images = np.stack([read_member(frames, one["suffix"]) for one in frames.fields["frames"][:count]])
        video = torch.from_numpy(images).permute(3, 0, 1, 2)[None].to(self.device)
        return encode_video(self.pipe.vae, to_float(video))


def prompts_of(work: Work[EncodeOptions]) -> list[str]:
    """The prompts in order. With a source, the first prompt describes it. Raises ItemError if one is missing."""
    following = [work.options.prompt, *work.options.next_prompts]
    if not all(following):
        raise ItemError(f"item {work.item.id} has no prompt for the new frames", "add --prompt TEXT")
    if "image" not in work.inputs:
        return following
    caption = caption_of(work)
    of_source = work.options.prompt1 or (caption.fields["prompt"] if caption else "")
    if not of_source:
        raise ItemError(
            f"item {work.item.id} has no prompt for its source", "add --prompt1 TEXT, or --caption FILE of caption_vlm"
        )
    return [of_source, *following]


def caption_of(work: Work[EncodeOptions]) -> Artifact | None:
    return work.artifact("caption") if "caption" in work.inputs else None


def raw_of(work: Work[EncodeOptions]) -> str:
    """The captioner's raw description of the source; empty where prompt1 replaces it."""
    caption = caption_of(work)
    return caption.fields["raw"] if caption and not work.options.prompt1 else ""


def lengths_of(work: Work[EncodeOptions]) -> Lengths:
    """Frames of the source that are used. Raises ItemError for a source that is too short, too long or not frames."""
    source, options = work.optional("image"), work.options
    if source is None:
        return Lengths(0, 0)
    if not isinstance(source, Artifact) or source.kind != "frames":
        raise ItemError(f"{getattr(source, 'path', source)} is an image and not the frames of a video", "use extract_frames")
    block = options.num_frame_per_block
    available = min(len(source.fields["frames"]), options.num_conditioning_frames)
    used = lengths(available, block)
    if not used.latent_frames:
        raise ItemError(
            f"the source of {work.item.id} has {available} frames to use",
            f"give at least {pixel_frames(block)}, which make a block of {block} {LATENT}",
        )
    if used.latent_frames >= options.num_output_frames:
        raise ItemError(
            f"the source of {work.item.id} fills {used.latent_frames} {LATENT} and the film has {options.num_output_frames}",
            "raise num_output_frames or lower num_conditioning_frames",
        )
    return used


def size_of(work: Work[EncodeOptions]) -> tuple[int, int]:
    """Width and height of the source's frames, else of option size."""
    if (source := work.optional("image")) is not None and isinstance(source, Artifact):
        return source.fields["width"], source.fields["height"]
    return parse_size(work.options.size)
