"""Encode for Wan2.2: turns a prompt and a first frame into embeddings and condition latents.

The 5b needs no first frame, and the 14b-t2v takes none.

UMT5 encodes the prompt in the chosen precision, the VAE encodes the frame in float32. The result is deterministic: it uses
the mode of the VAE's posterior, as `WanImageToVideoPipeline` does.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from stages.families.shared.item import (
    check_against_model,
    check_finite,
    encoded_fields,
    first_frame,
    first_frame_path,
    require_prompt,
)
from stages.families.shared.wan.encode import WanEncode
from stages.families.shared.wan.limits import limits
from stages.families.shared.wan.repository import clean
from stages.families.shared.word_tokenizer import warn_of_unread
from stages.families.wan.options import FAMILY, FROM_TEXT, SIZES, T2V, EncodeOptions, is_fitted
from stages.media.read import read_image
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
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
        if "image" in work.inputs:
            frame = Image.fromarray(first_frame(work.input("image")))
            width, height = frame.size
            image_latents, mask = self._condition(frame, work.options.num_frames)
        else:
            width, height = parse_size(work.options.size)
            image_latents, mask = self._empty_condition(width, height, work.options.num_frames)
        fields = encoded_fields(self.model, work, (width, height), work.options.num_frames, prompt, raw)
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

    def _empty_condition(self, width: int, height: int, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Image latents and mask for text to video: all zero."""
        frames, *side = self._grid(width, height, num_frames)
        return torch.zeros(1, self.pipe.vae.config.z_dim, 1, *side), torch.zeros(1, 1, frames, *side, dtype=torch.uint8)

    def _grid(self, width: int, height: int, num_frames: int) -> tuple[int, int, int]:
        """Number of latents in time, height and width."""
        spatial = self.pipe.vae.config.scale_factor_spatial
        return (num_frames - 1) // 4 + 1, height // spatial, width // spatial


def size_of(source: Artifact | Path) -> tuple[int, int]:
    """Width and height of the first frame."""
    if isinstance(source, Artifact):
        return source.fields["width"], source.fields["height"]
    height, width, _ = read_image(source).shape
    return width, height
