"""The few-step sampler of LongLive (arXiv:2509.22622) over a KV cache: prefill, denoising of blocks, prompt switches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.families.longlive.cache import Cache
from stages.families.longlive.causal import CausalWan

NUM_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the denoising steps of a block: sigmas in (0, 1]. The model's timestep is 1000 sigma."""

    sigmas: tuple[float, ...]
    context_noise: float = 0.0  # timestep at which the model reads clean frames; no noise is added to them

    @classmethod
    def of(cls, steps: Sequence[int], shift: float, warp: bool, context_noise: float) -> Schedule:
        """Make a schedule from timesteps (1 to 1000): sigma = timestep / 1000.

        With `warp` it is shift * sigma / (1 + (shift - 1) * sigma).
        """
        sigmas = [step / NUM_TRAIN_TIMESTEPS for step in steps]
        return cls(tuple(shift * s / (1 + (shift - 1) * s) if warp else s for s in sigmas), context_noise)


def prefill(
    model: CausalWan, cache: Cache, latents: torch.Tensor, text: torch.Tensor, schedule: Schedule, block: int
) -> None:
    """Write given clean frames [B, C, F, h, w] into the cache, block by block, as if they had been generated."""
    for start in range(0, latents.shape[2], block):
        update_cache(model, cache, latents[:, :, start : start + block], text, schedule, start)


def update_cache(
    model: CausalWan, cache: Cache, latents: torch.Tensor, text: torch.Tensor, schedule: Schedule, start: int
) -> None:
    """Write a block of clean frames [B, C, F, h, w], the first of which is `start`, into the cache."""
    model(latents, schedule.context_noise, text, cache, start, cache.block_slots(start, latents.shape[2]))


def denoise(
    model: CausalWan,
    cache: Cache,
    noise: torch.Tensor,
    step_noise: Sequence[torch.Tensor],
    text: torch.Tensor,
    schedule: Schedule,
    start: int,
) -> torch.Tensor:
    """Denoise a block of frames [B, C, F, h, w] from noise. The cache has its frames of the last step until `update_cache`.

    The model predicts v = noise - x0. So each step computes x0 = x - sigma v, in float64, and the next x is
    (1 - sigma') x0 + sigma' n with the next sigma' and new noise n of `step_noise`, a tensor for each step but the last.
    """
    x, slots = noise, cache.block_slots(start, noise.shape[2])
    for step, sigma in enumerate(schedule.sigmas):
        velocity = model(x, NUM_TRAIN_TIMESTEPS * sigma, text, cache, start, slots)
        clean = (x.double() - sigma * velocity.double()).to(x.dtype)
        if step + 1 < len(schedule.sigmas):
            next_sigma = schedule.sigmas[step + 1]
            x = (1 - next_sigma) * clean + next_sigma * step_noise[step]
    return clean


def recache(
    model: CausalWan,
    cache: Cache,
    latest: torch.Tensor,
    text: torch.Tensor,
    schedule: Schedule,
    start: int,
    keep_sinks: bool,
) -> None:
    """Recompute the keys and values of the cached window with another prompt.

    `latest` are the clean frames of the window, [B, C, F, h, w], the first of which is `start`.
    """
    cache.clear_cross_attention()
    model(latest, schedule.context_noise, text, cache, start, cache.recache_slots(start, latest.shape[2], keep_sinks))
    cache.clear_cross_attention()
