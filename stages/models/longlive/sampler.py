"""The few-step sampler of LongLive (arXiv:2509.22622) over a cache: prefill, blocks, prompt switches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stages.models.longlive.cache import Cache
from stages.models.longlive.causal import CausalWan

TRAINING_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """The noise levels that a block goes through: sigma in (0, 1], the model is told 1000 sigma."""

    sigmas: tuple[float, ...]
    context_noise: float = 0.0  # timestep of clean frames; changes what the model is told, not the frames

    @classmethod
    def of(cls, steps: Sequence[int], shift: float, warp: bool, context_noise: float) -> Schedule:
        """From steps of 1000: step s stands for s / 1000, with `warp` shifted to shift * s / (1 + (shift - 1) * s)."""
        even = [step / TRAINING_STEPS for step in steps]
        return cls(tuple(shift * s / (1 + (shift - 1) * s) if warp else s for s in even), context_noise)


def prefill(
    model: CausalWan, cache: Cache, latents: torch.Tensor, text: torch.Tensor, schedule: Schedule, block: int
) -> None:
    """Bring given frames [B, C, F, h, w] into the cache, block by block, as if they had been made."""
    for start in range(0, latents.shape[2], block):
        remember(model, cache, latents[:, :, start : start + block], text, schedule, start)


def remember(
    model: CausalWan, cache: Cache, latents: torch.Tensor, text: torch.Tensor, schedule: Schedule, start: int
) -> None:
    """Write clean frames from `start` on into the cache."""
    model(latents, schedule.context_noise, text, cache, start, cache.block(start, latents.shape[2]))


def denoise(
    model: CausalWan,
    cache: Cache,
    noise: torch.Tensor,
    fresh: Sequence[torch.Tensor],
    text: torch.Tensor,
    schedule: Schedule,
    start: int,
) -> torch.Tensor:
    """A block of frames [B, C, F, h, w] from noise; `fresh` noise is added after each step but the last.

    The model tells v = noise - x0, so x0 = x - sigma v (in float64); the next x is (1 - sigma) x0 + sigma noise. The clean
    block is then remembered.
    """
    x, slots = noise, cache.block(start, noise.shape[2])
    for step, sigma in enumerate(schedule.sigmas):
        velocity = model(x, TRAINING_STEPS * sigma, text, cache, start, slots)
        clean = (x.double() - sigma * velocity.double()).to(x.dtype)
        if step + 1 < len(schedule.sigmas):
            following = schedule.sigmas[step + 1]
            x = (1 - following) * clean + following * fresh[step]
    remember(model, cache, clean, text, schedule, start)
    return clean


def switch(
    model: CausalWan,
    cache: Cache,
    latest: torch.Tensor,
    text: torch.Tensor,
    schedule: Schedule,
    start: int,
    keep_sinks: bool,
) -> None:
    """Go over the window once more with another prompt, so that its keys and values speak of that one.

    `latest` are the clean frames of the window, [B, C, F, h, w], the first of them `start`.
    """
    cache.forget_prompt()
    model(latest, schedule.context_noise, text, cache, start, cache.again(start, latest.shape[2], keep_sinks))
    cache.forget_prompt()
