"""Encode for Wan2.2: turns a prompt and a first frame into embeddings and condition latents.

The 5b needs no first frame, and the 14b-t2v takes none.

UMT5 encodes the prompt in the chosen precision, the VAE encodes the frame in float32. The result is deterministic: it uses
the mode of the VAE's posterior, as `WanImageToVideoPipeline` does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages.families.shared.item import (
    check_against_model,
    check_finite,
    check_lineage,
    check_past,
    encoded_fields,
    first_frame,
    first_frame_path,
    last_frames,
    past_of,
    require_prompt,
    size_of,
)
from stages.families.shared.wan.encode import WanEncode
from stages.families.shared.wan.limits import limits
from stages.families.shared.wan.repository import clean
from stages.families.shared.wan.vae import encode_video
from stages.families.shared.word_tokenizer import warn_of_unread
from stages.families.wan.options import (
    FAMILY,
    FROM_TEXT,
    SIZES,
    T2V,
    EncodeOptions,
    check_known_latents,
    is_fitted,
    known_frames,
)
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.sizes import parse_size
from stages.runtime.worker import Work


class Encode(WanEncode[EncodeOptions]):
    """Writes `encoded`: prompt_embeds and negative_prompt_embeds [1, L, D], image_latents float32, mask uint8."""

    kind = "WanImageToVideoPipeline"

    def check(self, work: Work[EncodeOptions]) -> None:
        require_prompt(work)
        source, multiple = work.optional("image"), limits(self.model.folder()).stride
        if source is None and self.model.variant not in FROM_TEXT:
            raise ItemError(f"item {work.item.id} has no first frame", f"the {self.model.variant} needs one: encode IMAGE")
        if source and self.model.variant == T2V:
            raise ItemError(f"item {work.item.id} has a first frame", "the 14b-t2v takes none: give a prompt alone")
        image = first_frame_path(source) if source else f"size {work.options.size}"
        width, height = size_of(source) if source else parse_size(work.options.size)
        if width % multiple or height % multiple:
            raise ItemError(
                f"{image} is {width}x{height} and the {self.model.variant} needs multiples of {multiple}",
                "make it with extract_frames --size, or scale it",
            )
        check_past(work, FAMILY, self.model.variant)
        check_known_latents(self.model.variant, work.options.values())
        if past := past_of(work):
            check_lineage(past, self.model)
        if work.options.padding == "zeros" and self.model.variant != "14b":
            raise ItemError(f"padding is zeros and the {self.model.variant} has no padding", "leave --padding out")
        asked = work.options.size
        if source and asked != SIZES[self.model.variant][0] and not is_fitted((width, height), parse_size(asked), multiple):
            raise ItemError(
                f"size is {asked} and {image} is {width}x{height}",
                f"make the frame with extract_frames --size '{asked}', or leave --size out",
            )
        check_against_model(FAMILY, self.model, {**work.options.values(), "size": f"{width}*{height}"})

    def load_text_encoder(self, options: EncodeOptions) -> None:
        super().load_text_encoder(options)
        self.negatives: dict[tuple[str, int], torch.Tensor] = {}

    def encode_text(self, work: Work[EncodeOptions]) -> dict[str, torch.Tensor]:
        prompt, _ = require_prompt(work)
        negative, length = work.options.negative_prompt, work.options.max_sequence_length
        warn_of_unread(self.pipe.tokenizer, clean(prompt), length, work.item.id)
        if (negative, length) not in self.negatives:
            self.negatives[negative, length] = self.embed(negative, length)
        return {
            "prompt_embeds": self.embed(prompt, length),
            "negative_prompt_embeds": self.negatives[negative, length],
        }

    def write(self, work: Work[EncodeOptions], texts: Mapping[str, torch.Tensor]) -> None:
        prompt, raw = require_prompt(work)
        further: dict[str, Any] = {}
        if "image" in work.inputs:
            width, height = size_of(work.input("image"))
            if work.options.known_latents > 1:
                image_latents, mask = self._known(work)
                further = {"repeated_frames": known_frames(image_latents.shape[2])}
            elif work.options.padding == "zeros":
                image_latents, mask = self._anchor(work)
                further = {"padding": "zeros", **({"repeated_frames": known_frames(2)} if "past" in work.inputs else {})}
            else:
                frame = Image.fromarray(first_frame(work.input("image")))
                image_latents, mask = self._condition(frame, work.options.num_frames)
        else:
            width, height = parse_size(work.options.size)
            image_latents, mask = self._empty_condition(width, height, work.options.num_frames)
        fields = encoded_fields(self.model, work, (width, height), work.options.num_frames, prompt, raw, **further)
        tensors = {**texts, "image_latents": image_latents, "mask": mask}
        for name, tensor in tensors.items():
            check_finite(tensor, f"{name} of {work.item.id}")
        write_tensors(work.output, "encoded", fields, tensors)

    def _condition(self, frame: Image.Image, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised latents of the first frame, float32, and their mask, uint8, 1 where the first frame is given.

        14b: the frame followed by grey, [1, 16, T, h, w]; mask [1, 4, T, h, w], a channel per frame of a latent.
        5b: the frame alone, [1, 48, 1, h, w]; mask [1, 1, T, h, w].
        """
        vae = self.pipe.vae.config
        width, height = frame.size
        pixels = self.pipe.video_processor.preprocess(frame, height=height, width=width)  # [1, 3, H, W] in -1..1
        grid = self._grid(width, height, num_frames)
        unused = torch.empty(1, vae.z_dim, *grid)  # stands in for the noise, which generate draws
        _, *condition = self.pipe.prepare_latents(
            pixels.to(self.device), 1, vae.z_dim, height, width, num_frames, torch.float32, self.device, None, unused
        )
        if self.model.variant == "5b":
            image_latents, noise_mask = condition
            mask = 1 - noise_mask
        else:
            mask, image_latents = condition[0].split((4, vae.z_dim), dim=1)
        return image_latents, mask.to(torch.uint8)

    def _known(self, work: Work[EncodeOptions]) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of the end of what the clip continues, float32 [1, 48, K, h, w], and their mask: for the 5b.

        With a past the first latent is that of a single frame, as at the beginning of every clip, and the others are the
        last ones of the past. Without one, the last frames of the image are encoded as the beginning of a clip.
        """
        wanted = work.options.known_latents
        artifact = past_of(work)
        past = artifact.tensors()["latents"] if artifact else None
        if past is not None:
            wanted = min(wanted, past.shape[2])
        frames = last_frames(work.input("image"), known_frames(wanted))
        known = (len(frames) + 3) // 4
        if known < work.options.known_latents:
            reason = f"what it continues has {len(frames)} frames, so that {known} latent frames are known"
            log("warning", item=work.item.id, reason=reason, remedy="give a longer source, or lower known_latents")
        frames = frames[-known_frames(known) :]
        if past is not None and known > 1:
            latents = torch.cat([self._latents(frames[:1]).cpu(), past[:, :, 1 - known :]], dim=2)
        else:
            latents = self._latents(frames)
        mask = torch.zeros(1, 1, *self._grid(*size_of(work.input("image")), work.options.num_frames), dtype=torch.uint8)
        mask[:, :, :known] = 1
        return latents, mask

    def _anchor(self, work: Work[EncodeOptions]) -> tuple[torch.Tensor, torch.Tensor]:
        """The condition of SVI 2 Pro, float32 [1, 16, T, h, w], and its mask [1, 4, T, h, w]: for the 14b.

        The latent of the image, behind it the last latent of the past, if there is one, then zeros. Only the image is
        marked as given (Stable Video Infinity 2.0 Pro for Wan 2.2).
        """
        image = self._latents([first_frame(work.input("image"))])
        grid = self._grid(*size_of(work.input("image")), work.options.num_frames)
        latents, mask = image.new_zeros(*image.shape[:2], *grid), torch.zeros(1, 4, *grid, dtype=torch.uint8)
        latents[:, :, :1] = image
        if past := past_of(work):
            latents[:, :, 1:2] = past.tensors()["latents"][:, :, -1:].to(image)
        mask[:, :, 0] = 1
        return latents, mask

    def _latents(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Normalised latents [1, C, T, h, w] of frames, uint8 [H, W, 3], as the beginning of a clip."""
        height, width, _ = frames[0].shape
        pixels = [
            self.pipe.video_processor.preprocess(Image.fromarray(frame), height=height, width=width) for frame in frames
        ]  # [1, 3, H, W] in -1..1
        return encode_video(self.pipe.vae, torch.stack(pixels, dim=2).to(self.device))

    def _empty_condition(self, width: int, height: int, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image latents and mask for text to video: all zero."""
        frames, *side = self._grid(width, height, num_frames)
        return torch.zeros(1, self.pipe.vae.config.z_dim, 1, *side), torch.zeros(1, 1, frames, *side, dtype=torch.uint8)

    def _grid(self, width: int, height: int, num_frames: int) -> tuple[int, int, int]:
        """Number of latents in time, height and width."""
        spatial = self.pipe.vae.config.scale_factor_spatial
        return (num_frames - 1) // 4 + 1, height // spatial, width // spatial
