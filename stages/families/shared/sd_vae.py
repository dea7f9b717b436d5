"""The VAE of Stable Diffusion, in float32: it overflows in half precision."""

from collections.abc import Iterator
from functools import partial

import torch
from diffusers import AutoencoderKL

from stages.families.shared.loading import load_network, loading
from stages.runtime.model import Model
from stages.runtime.resident import RESIDENTS


def load_vae(model: Model, device: str) -> AutoencoderKL:
    """Load a repository's VAE. Raises JobError."""
    with loading(model):
        load = partial(load_network, AutoencoderKL, model.folder(), "vae", device, dtype=torch.float32)
        return RESIDENTS.take(model, "vae", load).eval()


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Scaled latents [N, 4, h, w] of images [N, 3, H, W] in -1..1: the mode of the posterior, not a sample."""
    return vae.encode(images.to(vae.device)).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode_frames(vae: AutoencoderKL, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """Decode scaled latents [1, 4, T, h, w] frame by frame: yields images [1, 3, H, W], not clamped to -1..1."""
    for z in latents.to(vae.device).unbind(2):
        yield vae.decode(z / vae.config.scaling_factor, return_dict=False)[0]
