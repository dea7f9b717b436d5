"""The random numbers of a film, all drawn on the CPU: those of the source, then those of each chunk.

Source and chunks have generators of their own, so that any chunk can be made without those before it, and a seed gives the
same film on every machine. Within each, the order is that of diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

SOURCE = 0  # number of the source; chunks follow


def generator(seed: int, number: int) -> torch.Generator:
    """The generator of the source (0) or of a chunk, counted from 1."""
    state = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0]
    return torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))


def draw_past(
    image: torch.Tensor,
    windows: Sequence[torch.Tensor],
    still: bool,
    vae: Mapping[str, Any],
    image_sigma: Sequence[float],
    video_sigma: Sequence[float],
    draws: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the normalised latents of a source, with a little noise on them: the first one and those of its chunks.

    Args:
        image: the moments of the first frame, [1, 2 C, 1, h, w].
        windows: the moments of the chunks of the source, each [1, 2 C, F, h, w].
        still: the source is one frame, and the chunk one in which it stands still: only its last latent is kept.
        vae: the config of the VAE.
        image_sigma, video_sigma: ranges of the share of noise in the first latent and in each of the others.
    """
    prefix = sample(image, vae, draws)
    chunks = [sample(window, vae, draws) for window in windows]
    if still:
        chunks = [chunks[0][:, :, -1:]]
    prefix = with_noise(prefix, image_sigma, draws)
    return prefix, torch.cat([with_noise(chunk, video_sigma, draws) for chunk in chunks], dim=2)


def sample(moments: torch.Tensor, vae: Mapping[str, Any], draws: torch.Generator) -> torch.Tensor:
    """A sample of the posterior with these moments [1, 2 C, T, h, w], normalised as in diffusers."""
    mean, std = (torch.tensor(vae[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (DiagonalGaussianDistribution(moments).sample(generator=draws) - mean) * (1.0 / std)


def with_noise(latents: torch.Tensor, sigma: Sequence[float], draws: torch.Generator) -> torch.Tensor:
    """Mix noise into latents [1, C, T, h, w], each latent with a share of its own in the range `sigma`."""
    low, high = sigma
    share = (torch.rand(latents.shape[2], generator=draws) * (high - low) + low).view(1, 1, -1, 1, 1)
    return share * torch.randn(latents.shape, generator=draws) + (1 - share) * latents
