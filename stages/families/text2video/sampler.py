"""Denoising by DDPM (Ho et al. 2020, arXiv:2006.11239) or DDIM (Song et al. 2020, arXiv:2010.02502)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler

from stages.families.shared.item import PRECISION_OR_GUIDANCE, check_finite


@torch.no_grad()
def denoise(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    schedule: Mapping[str, Any],
    *,
    sampler: str,
    steps: int,
    guidance: float,
    generator: torch.Generator,
    after_step: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Denoise noise `x` [B, C, T, H, W] to a clip in -1..1, float32.

    Args:
        model: `model(x, timestep, text)` predicts the noise, the velocity or the clip, as the `prediction_type` says.
        text: hidden states of the prompt [B, L, D].
        negative: hidden states of the negative prompt [B, L, D].
        schedule: the config of the scheduler.
        sampler: "ddpm" or "ddim".
        guidance: scale of classifier-free guidance. Above 1 each step runs the model a second time, on `negative`.
        generator: source of the noise that DDPM adds, on the CPU.
        after_step: called after each step.

    Raises:
        ItemError: the clip is not finite.
    """
    scheduler = DDPMScheduler.from_config(schedule)
    scheduler.set_timesteps(timesteps=trailing_timesteps(scheduler.config.num_train_timesteps, steps), device=x.device)
    dtype = text.dtype
    for step, timestep in enumerate(scheduler.timesteps):
        prediction = model(x.to(dtype), timestep[None], text).float()
        if guidance > 1:
            unguided = model(x.to(dtype), timestep[None], negative).float()
            prediction = unguided + guidance * (prediction - unguided)
        if sampler == "ddpm":
            x = scheduler.step(prediction, timestep, x, generator).prev_sample
        else:
            x = ddim_step(scheduler, prediction, step, x)
        check_finite(x, "the clip", PRECISION_OR_GUIDANCE, f"step {step + 1} of {steps}")
        after_step()
    return x


def trailing_timesteps(num_train_timesteps: int, steps: int) -> list[int]:
    """`steps` timesteps, evenly spaced from `num_train_timesteps` - 1 down ("trailing" spacing, arXiv:2305.08891).

    diffusers computes one too many for some numbers of steps, such as 61 of 1000; its last timestep is then -1.
    """
    return [round(num_train_timesteps * left / steps) - 1 for left in range(steps, 0, -1)]


def ddim_step(scheduler: DDPMScheduler, prediction: torch.Tensor, step: int, x: torch.Tensor) -> torch.Tensor:
    """One step of deterministic DDIM (formula 12 with sigma 0), to the next of the scheduler's timesteps.

    diffusers' DDIM steps by num_train_timesteps // steps, which misses the timesteps if the division has a remainder.
    """
    config, timestep = scheduler.config, scheduler.timesteps[step]
    alpha = scheduler.alphas_cumprod[timestep]
    last = step == len(scheduler.timesteps) - 1
    alpha_next = scheduler.one if last else scheduler.alphas_cumprod[scheduler.timesteps[step + 1]]
    if config.prediction_type == "epsilon":
        clip, noise = (x - (1 - alpha) ** 0.5 * prediction) / alpha**0.5, prediction
    elif config.prediction_type == "sample":
        clip, noise = prediction, (x - alpha**0.5 * prediction) / (1 - alpha) ** 0.5
    else:
        clip = alpha**0.5 * x - (1 - alpha) ** 0.5 * prediction
        noise = alpha**0.5 * prediction + (1 - alpha) ** 0.5 * x
    if config.clip_sample:
        clip = clip.clamp(-config.clip_sample_range, config.clip_sample_range)
    return alpha_next**0.5 * clip + (1 - alpha_next) ** 0.5 * noise
