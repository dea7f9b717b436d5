"""Wan latents of pixels, and pixels of latents, a few frames at a time."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from stages.models.shared.loading import load_network, loading
from stages.runtime.model import Model


def load_vae(model: Model, tiling: bool, device: str) -> AutoencoderKLWan:
    """A repository's VAE, in float32: in half precision colours walk along a chain. Raises JobError."""
    with loading(model):
        vae = load_network(AutoencoderKLWan, model.folder(), "vae", dtype=torch.float32)
        for name in ("latents_mean", "latents_std"):
            if (count := torch.tensor(vae.config[name]).numel()) != vae.config.z_dim:
                raise ValueError(f"vae/config.json has {count} numbers for {name} and {vae.config.z_dim} channels")
    if tiling:
        vae.enable_tiling()
    return vae.to(device)


def encoded(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Normalised latents [B, C, T, h, w] of a video [B, 3, F, H, W] in -1..1: the posterior's mode, nothing is random."""
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (vae.encode(video).latent_dist.mode() - mean.to(video)) / std.to(video)


def denormalised(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Latents [1, C, T, h, w] on the VAE's own scale. Divides by 1 / std: multiplying by std ends in other bits."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(latents)
    return latents / inverse_std + mean


def decoded(vae: AutoencoderKLWan, z: torch.Tensor) -> Iterator[torch.Tensor]:
    """The frames of denormalised latents [1, C, T, h, w], one by one, [3, H, W] in -1..1: 1 + 4 (T - 1) of them.

    Bit for bit what `vae.decode` returns. Only in tiles (`vae.use_tiling`) the clip is decoded as a whole.
    """
    if vae.use_tiling:
        with torch.no_grad():
            yield from vae.decode(z, return_dict=False)[0][0].unbind(1)
    else:
        yield from streamed(vae, z.split(1, dim=2))


@torch.no_grad()
def streamed(vae: AutoencoderKLWan, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The frames of denormalised latents that come one after the other, [1, C, 1, h, w]; memory does not grow with them."""
    for chunk in unclamped(vae, latents):
        yield from chunk.clamp(-1.0, 1.0)[0].unbind(1)  # [3, 1 or 4, H, W]


def unclamped(vae: AutoencoderKLWan, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The chunks [B, 3, 1 or 4, H, W] around -1..1 of latents [B, C, 1, h, w], with gradients where they are on.

    The decoder's causal convolutions remember what they need of the latents before.
    """
    try:
        vae.clear_cache()
        for number, latent in enumerate(latents):
            z = vae.post_quant_conv(latent)
            chunk = vae.decoder(z, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=number == 0)
            yield chunk if vae.config.patch_size is None else unpatchify(chunk, patch_size=vae.config.patch_size)
    finally:
        vae.clear_cache()


def pixels(frame: torch.Tensor) -> np.ndarray:
    """A frame [3, H, W] in -1..1 as uint8 [H, W, 3]. The only place where colours are rounded."""
    return ((frame / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
