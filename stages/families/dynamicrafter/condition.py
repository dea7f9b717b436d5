"""The condition of the U-Net: text embeddings, image tokens and latents of an image, all computed in float32."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTextModel, CLIPVisionModel

from stages.families.dynamicrafter.options import IN_FLOAT32
from stages.families.dynamicrafter.resampler import Resampler
from stages.families.shared.clip_text import clean, embed
from stages.families.shared.item import check_finite
from stages.families.shared.loading import load_network, load_tokenizer, loading
from stages.families.shared.pixels import to_float
from stages.families.shared.sd_vae import encode_images, load_vae
from stages.runtime.model import Model
from stages.runtime.resident import RESIDENTS

CLIP_MEAN = 0.48145466, 0.4578275, 0.40821073
CLIP_STD = 0.26862954, 0.26130258, 0.27577711


class TextEncoder:
    """The network of a model that encodes prompts. Raises JobError if it cannot be loaded."""

    def __init__(self, model: Model, device: str):
        folder = model.folder()
        with loading(model):
            self.tokenizer = RESIDENTS.take(model, "tokenizer", lambda: clip_tokenizer(folder))
            load = partial(load_network, CLIPTextModel, folder, "text_encoder", device, torch.float32)
            self.network = RESIDENTS.take(model, "text_encoder", load).eval()

    @torch.no_grad()
    def encode(self, prompt: str, negative_prompt: str) -> dict[str, torch.Tensor]:
        """The tensors of texts in `encoded`, float32. Raises ItemError for one that is not finite."""
        return finite(
            prompt_embeds=embed(self.tokenizer, self.network, [clean(prompt)]),
            negative_prompt_embeds=embed(self.tokenizer, self.network, [clean(negative_prompt)]),
        )


class ImageEncoder:
    """The networks of a model that encode images. Raises JobError if they cannot be loaded."""

    def __init__(self, model: Model, device: str):
        folder, self.device = model.folder(), device
        with loading(model):
            load = partial(load_network, CLIPVisionModel, folder, "image_encoder", device, torch.float32)
            self.image_encoder = RESIDENTS.take(model, "image_encoder", load).eval()
            load = partial(load_network, Resampler, folder, "image_projector", device, torch.float32)
            self.image_projector = RESIDENTS.take(model, "image_projector", load).eval()
        self.vae = load_vae(model, device)

    @torch.no_grad()
    def encode(self, first: torch.Tensor, last: torch.Tensor | None, frames: int) -> dict[str, torch.Tensor]:
        """The tensors of images in `encoded`, float32.

        `first` and `last` are images [1, 3, H, W] in -1..1. With a last image, the latents have all `frames`, and are zero
        between the two. Raises ItemError for a tensor that is not finite.
        """
        latents = encode_images(self.vae, first)[:, :, None]
        if last is not None:
            latents = F.pad(latents, (0, 0, 0, 0, 0, frames - 1))
            latents[:, :, -1] = encode_images(self.vae, last)
        return finite(image_embeds=self._tokens(first), negative_image_embeds=self._negative_tokens, image_latents=latents)

    def _tokens(self, image: torch.Tensor) -> torch.Tensor:
        """Image tokens [1, 256, D] of an image [1, 3, H, W] in -1..1, from CLIP's last states, not normalised."""
        pixels = clip_pixels(image.to(self.device), self.image_encoder.config.image_size)
        return self.image_projector(self.image_encoder(pixels).last_hidden_state)

    @cached_property
    def _negative_tokens(self) -> torch.Tensor:
        """The image tokens of plain grey, for the unconditional prediction of classifier-free guidance."""
        side = self.image_encoder.config.image_size
        return self._tokens(torch.zeros(1, 3, side, side))


def finite(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors, by name. Raises ItemError for one that is not finite."""
    for name, tensor in tensors.items():
        check_finite(tensor, name, IN_FLOAT32)
    return tensors


def clip_tokenizer(folder: Path) -> Any:
    """The tokenizer of a repository. As in open_clip, names of special tokens in a prompt are plain text: "!" is padding."""
    return load_tokenizer(folder / "tokenizer", split_special_tokens=True)


def resize_and_crop(rgb: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """An image, uint8 [H, W, 3], scaled to cover `size` (width, height) and cut: float32 [1, 3, height, width] in -1..1.

    Equal to torchvision's Resize and CenterCrop, which the published program uses: PIL's bilinear filter, the longer side
    rounded down, the offset of the crop rounded to the nearest pixel (half to even). The published program pads a narrower
    image with black; this function never pads.
    """
    height, width = rgb.shape[:2]
    if width * size[1] >= height * size[0]:
        scaled = max(int(size[1] * width / height), size[0]), size[1]
    else:
        scaled = size[0], max(int(size[0] * height / width), size[1])
    left, top = (round((long - short) / 2) for long, short in zip(scaled, size))
    image = Image.fromarray(rgb).resize(scaled, Image.Resampling.BILINEAR)
    fitted = torch.from_numpy(np.array(image.crop((left, top, left + size[0], top + size[1]))))
    return to_float(fitted.permute(2, 0, 1)[None])


def clip_pixels(image: torch.Tensor, side: int) -> torch.Tensor:
    """The normalised input of CLIP's image encoder for an image [B, 3, H, W] in -1..1: [B, 3, side, side], not cropped.

    Equal to kornia's antialiased resize: a Gaussian blur of sigma (factor - 1) / 2 along each axis, then bicubic
    interpolation with aligned corners. torch's own antialiasing gives other pixels.
    """
    height, width = image.shape[-2:]
    blurred = blur(blur(image, height / side, dim=-2), width / side, dim=-1)
    pixels = F.interpolate(blurred, (side, side), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(numbers, device=image.device).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    return ((pixels + 1) / 2 - mean) / std


def blur(image: torch.Tensor, factor: float, dim: int) -> torch.Tensor:
    """Blur an image [B, 3, H, W] along one axis, before it is shrunk by `factor`; reflected at its edges."""
    sigma = max((factor - 1) / 2, 0.001)
    taps = int(max(2 * 2 * sigma, 3)) // 2 * 2 + 1
    places = torch.arange(taps, device=image.device, dtype=image.dtype) - taps // 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    kernel_height, kernel_width = (taps, 1) if dim == -2 else (1, taps)
    kernel = (weights / weights.sum()).view(1, 1, kernel_height, kernel_width).expand(3, 1, -1, -1)
    padding = (kernel_width // 2, kernel_width // 2, kernel_height // 2, kernel_height // 2)
    return F.conv2d(F.pad(image, padding, mode="reflect"), kernel, groups=3)
