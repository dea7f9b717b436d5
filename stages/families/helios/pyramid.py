"""Denoises a chunk of Helios in stages of rising size: by HeliosScheduler (mid) or by HeliosDMDScheduler (distilled).

A stage begins with the latents of the one before, of twice the size, and with noise that hides their squares. The noise of
a square of 2 x 2 has the covariance (1 + gamma) I - gamma J. With gamma = 1/3, as published, that matrix is singular: its
Cholesky factor does not exist in float32, and in float64 by the grace of the 1e-8 on its diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import HeliosDMDScheduler, HeliosScheduler
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from torch.nn.functional import interpolate

from stages.families.helios.sampler import Prediction, shift_exponent, tokens_of

SIDE = 2  # of a square, in latents


def denoise_pyramid(
    model: Prediction,
    scheduler: HeliosScheduler | HeliosDMDScheduler,
    noise: torch.Tensor,
    steps: Sequence[int],
    guidance_scale: float,
    zero_steps: int,
    amplify: bool,
    draws: torch.Generator,
) -> torch.Tensor:
    """Denoise a chunk [1, C, F, h, w] from noise, float32, in as many stages as `steps` has numbers.

    Args:
        guidance_scale: above 1 the prediction is guided by CFG-Zero* (arXiv:2503.18886), and the model has a negative.
        zero_steps: guided steps of the first stage whose prediction is 0.
        amplify: takes twice the steps of a distilled model, for the first chunk of a film.
        draws: the generator on the CPU, which goes on with the noise of the stages.
    """
    x = noise
    for _ in steps[1:]:
        x = 2 * resized(x, 0.5, "bilinear")
    for stage, count in enumerate(steps):
        mu = shift_exponent(tokens_of(x))  # of the size of the stage before, as in diffusers
        scheduler.set_timesteps(count, stage, device=x.device, mu=mu, is_amplify_first_chunk=amplify)
        if stage:
            x = renoised(resized(x, 2, "nearest"), scheduler, stage, model.dtype, draws)
        start = x
        for step, t in enumerate(scheduler.timesteps):
            if guidance_scale > 1 and stage == 0 and step < zero_steps:
                velocity = torch.zeros_like(x, dtype=model.dtype)
            else:
                velocity = guided(model, x, t.to(torch.int64), guidance_scale)
            x = scheduler.step(velocity, t, x, return_dict=False, **dmd_inputs(scheduler, step, start))[0]
    return x


def guided(model: Prediction, x: torch.Tensor, timestep: torch.Tensor, scale: float) -> torch.Tensor:
    """The velocity, with a scale above 1 by CFG-Zero*."""
    velocity = model(x, timestep)
    if scale <= 1:
        return velocity
    negative = model(x, timestep, negative=True)
    # reshape: at the smallest size the prediction is not contiguous, and diffusers fails
    fitted = cfg_zero_star_scale(velocity.reshape(1, -1), negative.reshape(1, -1)).to(velocity.dtype).item() * negative
    return fitted + scale * (velocity - fitted)


def dmd_inputs(scheduler: HeliosScheduler | HeliosDMDScheduler, step: int, start: torch.Tensor) -> dict[str, Any]:
    """What a step of a distilled model needs beside the prediction: the latents that its stage started from."""
    if not isinstance(scheduler, HeliosDMDScheduler):
        return {}
    return {
        "cur_sampling_step": step,
        "dmd_noisy_tensor": start,
        "dmd_sigmas": scheduler.sigmas,
        "dmd_timesteps": scheduler.timesteps,
        "all_timesteps": scheduler.timesteps,
    }


def resized(x: torch.Tensor, factor: float, mode: str) -> torch.Tensor:
    """Latents [B, C, F, h, w] of another height and width."""
    count, _, frames, height, width = x.shape
    size = int(height * factor), int(width * factor)
    images = interpolate(x.transpose(1, 2).flatten(0, 1), size=size, mode=mode)
    return images.unflatten(0, (count, frames)).transpose(1, 2)


def renoised(
    x: torch.Tensor,
    scheduler: HeliosScheduler | HeliosDMDScheduler,
    stage: int,
    dtype: torch.dtype,
    draws: torch.Generator,
) -> torch.Tensor:
    """The latents that a stage starts from: a x + b n, so that their noise is that of the stage's first timestep.

    With the signal's share s there and r = sqrt(1 + 1 / gamma): a = 1 / (r (1 - s) + s), b = a (1 - s) / sqrt(gamma).
    """
    signal, gamma = 1 - scheduler.ori_start_sigmas[stage], scheduler.config.gamma
    a = 1 / (math.sqrt(1 + (1 / gamma)) * (1 - signal) + signal)
    b = a * (1 - signal) / math.sqrt(gamma)
    return a * x + b * square_noise(x.shape, gamma, draws).to(x.device, dtype)


def square_noise(shape: Sequence[int], gamma: float, draws: torch.Generator) -> torch.Tensor:
    """Noise [B, C, F, h, w], normal and correlated within each square of latents."""
    count, channels, frames, height, width = shape
    grid = (count, channels, frames, height // SIDE, width // SIDE)
    z = torch.randn(math.prod(grid), SIDE**2, generator=draws)
    noise = (z @ factor_of(gamma).T).view(*grid, SIDE, SIDE)
    return noise.transpose(4, 5).reshape(tuple(shape))


def factor_of(gamma: float) -> torch.Tensor:
    """The Cholesky factor of the covariance of a square, float32: of float32 as in diffusers where that exists."""
    size = SIDE**2
    covariance = torch.eye(size) * (1 + gamma) - torch.ones(size, size) * gamma
    covariance += torch.eye(size) * 1e-8
    factor, fault = torch.linalg.cholesky_ex(covariance)
    if not fault:
        return factor
    exact = torch.eye(size, dtype=torch.float64) * (1 + gamma + 1e-8) - gamma
    return torch.linalg.cholesky(exact).float()
