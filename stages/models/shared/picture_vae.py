"""The VAE of Stable Diffusion, a picture at a time, in float32: it overflows in half precision."""

from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL

from stages.models.shared.loading import load_network, loading
from stages.runtime.model import Model


def load_vae(model: Model, device: str) -> AutoencoderKL:
    """A repository's VAE. Raises JobError."""
    with loading(model):
        vae = load_network(AutoencoderKL, model.folder(), "vae", dtype=torch.float32)
    return vae.to(device).eval()


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Scaled latents [N, 4, h, w] of pictures [N, 3, H, W] in -1..1: the posterior's mode, so that nothing is random."""
    return vae.encode(pictures.to(vae.device)).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decoded(vae: AutoencoderKL, latents: torch.Tensor) -> Iterator[torch.Tensor]:
    """The pictures of latents [1, 4, T, h, w], one by one, [1, 3, H, W] around -1..1."""
    for z in latents.to(vae.device).unbind(2):
        yield vae.decode(z / vae.config.scaling_factor, return_dict=False)[0]
