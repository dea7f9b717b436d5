"""What trainings on pictures share: the VAE that stays as it is, and what stands out, where they look more closely."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL

from stages.models.shared.loading import load_network
from stages.models.shared.training.encoded import vae_folder


def frozen_vae(options: Mapping[str, Any]) -> AutoencoderKL:
    """Stable Diffusion's VAE of `vae`, else of `start_from`, in float32. Raises UsageError where there is none."""
    vae = load_network(AutoencoderKL, vae_folder(options, "sd-vae"), "vae", dtype=torch.float32)
    return vae.requires_grad_(False).eval()


def foreground(video: torch.Tensor) -> torch.Tensor:
    """1 where a pixel of [B, 3, T, H, W] differs from its clip's most common tone, else 0: float [B, 1, T, H, W]."""
    ground = video.flatten(2).median(dim=2).values[:, :, None, None, None]
    return ((video - ground).abs().amax(dim=1, keepdim=True) > 0.1).to(video)


def crop(clip: torch.Tensor, size: int, place: float) -> torch.Tensor:
    """A square of `size` pixels of a clip [3, T, H, W] around a pixel that stands out, from the first (0) to the last (1).

    It may cut what it is about, so that outlines are also learned at the border of a picture.
    """
    height, width = clip.shape[2:]
    shown = foreground(clip[None])[0, 0].amax(dim=0).nonzero().tolist()  # y and x
    y, x = shown[min(int(place * len(shown)), len(shown) - 1)] if shown else (height / 2, width / 2)
    top, left = (int(min(max(at - size / 2, 0), side - size)) for at, side in ((y, height), (x, width)))
    return clip[:, :, top : top + size, left : left + size]
