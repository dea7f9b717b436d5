"""Denoises a chunk of Helios: flow matching, by the schedulers of diffusers, as its pipelines do.

`denoise` is a function of its arguments: no solver remembers a chunk. The noise of a chunk comes from a generator of its
own, so that a chunk can be made again alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import HeliosScheduler

from stages.families.helios.history import Past, predict

FIRST_SIGMA = 0.999
TOKENS, SHIFTS = (256, 4096), (0.5, 1.15)  # of the shortest and of the longest chunk of the schedule


@dataclass(frozen=True)
class Prediction:
    """Makes passes of a transformer that computes in `dtype`, with the prompt or the negative prompt.

    Attributes:
        past: what lies before the chunk, in the transformer's dtype.
        prompt: embeddings [1, L, D], in the transformer's dtype.
        negative: those of the negative prompt; None without guidance.
        sizes: see `predict`.
    """

    transformer: torch.nn.Module
    dtype: torch.dtype
    past: Past
    prompt: torch.Tensor
    negative: torch.Tensor | None
    sizes: Sequence[int]

    def __call__(self, x: torch.Tensor, timestep: torch.Tensor, negative: bool = False) -> torch.Tensor:
        text = self.negative if negative and self.negative is not None else self.prompt
        time = timestep.expand(len(x))
        return predict(self.transformer, x.to(self.dtype), time, text, self.past, self.sizes)


def shift_exponent(tokens: int) -> float:
    """The mu of a dynamic shift, linear in the tokens of a chunk (Esser et al. 2024, arXiv:2403.03206, as in Flux)."""
    slope = (SHIFTS[1] - SHIFTS[0]) / (TOKENS[1] - TOKENS[0])
    return tokens * slope + (SHIFTS[0] - slope * TOKENS[0])


def tokens_of(x: torch.Tensor) -> int:
    """Tokens of a chunk [B, C, F, h, w], in patches of 1 x 2 x 2."""
    return x.shape[2] * x.shape[3] * x.shape[4] // 4


def denoise(
    model: Prediction, scheduler: HeliosScheduler, noise: torch.Tensor, steps: int, guidance_scale: float
) -> torch.Tensor:
    """Denoise a chunk [1, C, F, h, w] from noise, float32, in one stage. With a scale above 1 the model has a negative."""
    sigmas = np.linspace(FIRST_SIGMA, 0.0, steps + 1)[:-1]
    scheduler.set_timesteps(steps, device=noise.device, sigmas=sigmas, mu=shift_exponent(tokens_of(noise)))
    x = noise
    for t in scheduler.timesteps:
        velocity = model(x, t)
        if guidance_scale > 1:
            negative = model(x, t, negative=True)
            velocity = negative + guidance_scale * (velocity - negative)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x
