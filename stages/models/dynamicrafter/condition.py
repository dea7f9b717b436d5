"""A prompt and a picture as the U-Net wants them: text states, image tokens, latents. All in float32: it is one pass."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTextModel, CLIPVisionModel

from stages.models.dynamicrafter.common import check_finite
from stages.models.dynamicrafter.resampler import Resampler
from stages.models.shared.loading import load_network, load_tokenizer, loading
from stages.models.shared.picture_vae import encoded, load_vae
from stages.models.shared.text import clean, embed
from stages.runtime.model import Model

CLIP_MEAN = 0.48145466, 0.4578275, 0.40821073
CLIP_STD = 0.26862954, 0.26130258, 0.27577711


class Encoders:
    """The networks of a model that look at prompts and pictures. Raises JobError where they cannot be loaded."""

    def __init__(self, model: Model, device: str):
        folder, self.device = model.folder(), device
        with loading(model):
            self.tokenizer = clip_tokenizer(folder)
            self.text_encoder = load_network(CLIPTextModel, folder, "text_encoder", dtype=torch.float32)
            self.image_encoder = load_network(CLIPVisionModel, folder, "image_encoder", dtype=torch.float32)
            self.image_projector = load_network(Resampler, folder, "image_projector", dtype=torch.float32)
        self.vae = load_vae(model, device)
        for network in (self.text_encoder, self.image_encoder, self.image_projector):
            network.to(device).eval()

    @torch.no_grad()
    def condition(
        self, prompt: str, negative_prompt: str, first: torch.Tensor, last: torch.Tensor | None, frames: int
    ) -> dict[str, torch.Tensor]:
        """The tensors of `encoded`. `first` and `last`: pictures [1, 3, H, W] in -1..1; with a last one the latents have all
        frames, zero between the two. Raises ItemError for what is not finite."""
        latents = encoded(self.vae, first)[:, :, None]
        if last is not None:
            latents = F.pad(latents, (0, 0, 0, 0, 0, frames - 1))
            latents[:, :, -1] = encoded(self.vae, last)
        made = {
            "prompt_embeds": embed(self.tokenizer, self.text_encoder, [clean(prompt)]),
            "negative_prompt_embeds": embed(self.tokenizer, self.text_encoder, [clean(negative_prompt)]),
            "image_embeds": self._tokens(first),
            "negative_image_embeds": self._no_picture,
            "image_latents": latents,
        }
        for name, tensor in made.items():
            check_finite(tensor, name)
        return made

    def _tokens(self, picture: torch.Tensor) -> torch.Tensor:
        """Image tokens [1, 256, D]: of all states of the image model, its last norm left out."""
        pixels = clip_pixels(picture.to(self.device), self.image_encoder.config.image_size)
        return self.image_projector(self.image_encoder(pixels).last_hidden_state)

    @cached_property
    def _no_picture(self) -> torch.Tensor:
        """The image tokens of plain grey, for the prediction that guidance leads away from."""
        side = self.image_encoder.config.image_size
        return self._tokens(torch.zeros(1, 3, side, side))


def clip_tokenizer(folder: Path) -> Any:
    """The tokenizer of a repository. The names of its special tokens are plain text in a prompt, as in open_clip: above all
    "!", which pads."""
    return load_tokenizer(folder / "tokenizer", split_special_tokens=True)


def as_pixels(rgb: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """An image, uint8 [H, W, 3], scaled to cover `size` (width, height) and cut: float32 [1, 3, height, width] in -1..1.

    As the published program does by torchvision's Resize and CenterCrop: PIL's bilinear filter, the longer side rounded
    down, the cut rounded to the nearest pixel (half to even). It pads an image that is narrower than the size with black;
    here nothing is ever padded.
    """
    height, width = rgb.shape[:2]
    if width * size[1] >= height * size[0]:
        scaled = max(int(size[1] * width / height), size[0]), size[1]
    else:
        scaled = size[0], max(int(size[0] * height / width), size[1])
    left, top = (round((long - short) / 2) for long, short in zip(scaled, size))
    image = Image.fromarray(rgb).resize(scaled, Image.Resampling.BILINEAR)
    fitted = torch.from_numpy(np.array(image.crop((left, top, left + size[0], top + size[1]))))
    return fitted.permute(2, 0, 1)[None].float() / 127.5 - 1


def clip_pixels(picture: torch.Tensor, side: int) -> torch.Tensor:
    """What CLIP's image model is shown of a picture [B, 3, H, W] in -1..1: [B, 3, side, side], stretched, not cut.

    Blurred by a Gaussian of sigma (factor - 1) / 2 for each axis, then bicubic with the corners aligned, as kornia's
    antialiased resize does; torch's own antialiasing gives other pixels.
    """
    height, width = picture.shape[-2:]
    blurred = blur(blur(picture, height / side, dim=-2), width / side, dim=-1)
    pixels = F.interpolate(blurred, (side, side), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(numbers, device=picture.device).view(3, 1, 1) for numbers in (CLIP_MEAN, CLIP_STD))
    return ((pixels + 1) / 2 - mean) / std


def blur(picture: torch.Tensor, factor: float, dim: int) -> torch.Tensor:
    """A picture [B, 3, H, W] blurred along one axis, as is due before it shrinks by `factor`; mirrored at its edges."""
    sigma = max((factor - 1) / 2, 0.001)
    taps = int(max(2 * 2 * sigma, 3)) // 2 * 2 + 1
    places = torch.arange(taps, device=picture.device, dtype=picture.dtype) - taps // 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    down, across = (taps, 1) if dim == -2 else (1, taps)
    kernel = (weights / weights.sum()).view(1, 1, down, across).expand(3, 1, -1, -1)
    edges = (across // 2, across // 2, down // 2, down // 2)
    return F.conv2d(F.pad(picture, edges, mode="reflect"), kernel, groups=3)
