"""The VAE of Wan: encodes videos to latents, and decodes latents a few frames at a time."""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

from stages.families.shared.loading import load_network, loading
from stages.runtime.model import Model
from stages.runtime.resident import RESIDENTS


def load_vae(model: Model, tiling: bool, device: str) -> AutoencoderKLWan:
    """Load a repository's VAE in float32: in half precision the colours drift along a chain of clips. Raises JobError."""
    with loading(model):
        load = partial(load_network, AutoencoderKLWan, model.folder(), "vae", device, dtype=torch.float32)
        vae = RESIDENTS.take(model, "vae", load)
        for name in ("latents_mean", "latents_std"):
            if (count := torch.tensor(vae.config[name]).numel()) != vae.config.z_dim:
                raise ValueError(f"vae/config.json has {count} numbers for {name} and {vae.config.z_dim} channels")
    vae.use_tiling = tiling
    return vae


def encode_video(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    """Normalised latents [B, C, T, h, w] of a video [B, 3, F, H, W] in -1..1: the mode of the posterior, not a sample."""
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (vae.encode(video).latent_dist.mode() - mean.to(video)) / std.to(video)


def denormalise(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Bring normalised latents [1, C, T, h, w] to the VAE's scale.

    Divides by 1 / std as diffusers does: multiplying by std rounds differently.
    """
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1).to(latents)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1).to(latents)
    return latents / inverse_std + mean


@torch.no_grad()
def decode_video(vae: AutoencoderKLWan, z: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the 1 + 4 (T - 1) frames of denormalised latents [1, C, T, h, w], each [3, H, W] in -1..1.

    The frames are bit-identical to those of `vae.decode`. With tiling (`vae.use_tiling`) the clip is decoded in one piece.
    """
    if vae.use_tiling:
        yield from vae.decode(z, return_dict=False)[0][0].unbind(1)
    else:
        yield from decode_stream(vae, z.split(1, dim=2))


@torch.no_grad()
def decode_stream(vae: AutoencoderKLWan, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield the frames [3, H, W] in -1..1 of a stream of denormalised latents [1, C, 1, h, w], in constant memory."""
    for chunk in decode_chunks(vae, latents):
        yield from chunk.clamp(-1.0, 1.0)[0].unbind(1)  # [3, 1 or 4, H, W]


def decode_chunks(vae: AutoencoderKLWan, latents: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield a chunk of frames [B, 3, 1 or 4, H, W], not clamped to -1..1, for each denormalised latent [B, C, 1, h, w].

    Gradients flow where they are enabled. The causal convolutions of the decoder cache their inputs between chunks.
    """
    try:
        vae.clear_cache()
        for number, latent in enumerate(latents):
            z = vae.post_quant_conv(latent)
            chunk = vae.decoder(z, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=number == 0)
            yield chunk if vae.config.patch_size is None else unpatchify(chunk, patch_size=vae.config.patch_size)
    finally:
        vae.clear_cache()
