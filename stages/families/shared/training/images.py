"""What trainings on images share: the frozen VAE, and the foreground with crops around it."""

import torch
from diffusers import AutoencoderKL

from stages.families.shared.loading import load_network
from stages.families.shared.training.encoded import vae_folder


def load_frozen_vae(folder: str) -> AutoencoderKL:
    """Load the Stable Diffusion VAE of a model's folder in float32, frozen. Raises UsageError if there is none."""
    vae = load_network(AutoencoderKL, vae_folder(folder, "sd-vae"), "vae", dtype=torch.float32)
    return vae.requires_grad_(False).eval()


def foreground(video: torch.Tensor) -> torch.Tensor:
    """Foreground mask [B, 1, T, H, W] of videos [B, 3, T, H, W]: 1 where a pixel differs from its clip's median colour."""
    background = video.flatten(2).median(dim=2).values[:, :, None, None, None]
    return ((video - background).abs().amax(dim=1, keepdim=True) > 0.1).to(video)


def crop(clip: torch.Tensor, size: int, position: float) -> torch.Tensor:
    """Cut a square of `size` pixels out of a clip [3, T, H, W], around a pixel of the foreground.

    `position` chooses the pixel, from the first (0) to the last (1). The square may cut the object, so that outlines are
    also learned at the border of an image.
    """
    height, width = clip.shape[2:]
    pixels = foreground(clip[None])[0, 0].amax(dim=0).nonzero().tolist()  # y and x
    y, x = pixels[min(int(position * len(pixels)), len(pixels) - 1)] if pixels else (height / 2, width / 2)
    top, left = (int(min(max(centre - size / 2, 0), side - size)) for centre, side in ((y, height), (x, width)))
    return clip[:, :, top : top + size, left : left + size]
