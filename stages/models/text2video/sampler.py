"""Denoising by DDPM (Ho et al. 2020, arXiv:2006.11239) or DDIM (Song et al. 2020, arXiv:2010.02502)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler

from stages.runtime.errors import ItemError


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
    after_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """From noise `x` [B, C, T, H, W] to a clip in -1..1, float32.

    `model(x, timestep, text)` predicts what `schedule`, a scheduler's config, says: the noise, the velocity or the clip.
    `text` and `negative` are states [B, L, D]; guidance above 1 adds a second pass with `negative`. DDPM draws its noise
    from `generator`, on the CPU. Raises ItemError when the clip is not finite.
    """
    scheduler = DDPMScheduler.from_config(schedule)
    scheduler.set_timesteps(timesteps=spread(scheduler.config.num_train_timesteps, steps), device=x.device)
    dtype = text.dtype
    for step, timestep in enumerate(scheduler.timesteps):
        made = model(x.to(dtype), timestep[None], text).float()
        if guidance > 1:
            without = model(x.to(dtype), timestep[None], negative).float()
            made = without + guidance * (made - without)
        x = scheduler.step(made, timestep, x, generator).prev_sample if sampler == "ddpm" else ddim(scheduler, made, step, x)
        if not torch.isfinite(x).all():
            raise ItemError(
                f"the clip became NaN or infinite at step {step + 1} of {steps}",
                "try --dtype float32 or bfloat16, and a lower guidance_scale",
            )
        after_step()
    return x


def spread(trained: int, steps: int) -> list[int]:
    """`steps` timesteps, evenly spread from `trained` - 1 down to the one before the clip ("trailing", arXiv:2305.08891).

    diffusers' own are one too many for some numbers of steps, 61 of 1000 among them: the last is then -1.
    """
    return [round(trained * left / steps) - 1 for left in range(steps, 0, -1)]


def ddim(scheduler: DDPMScheduler, made: torch.Tensor, step: int, x: torch.Tensor) -> torch.Tensor:
    """One step of DDIM without noise (formula 12, sigma 0), down to the next of the scheduler's timesteps.

    diffusers' own goes down by the whole part of trained / steps, which is another one where steps does not divide trained.
    """
    config, timestep = scheduler.config, scheduler.timesteps[step]
    alpha = scheduler.alphas_cumprod[timestep]
    last = step == len(scheduler.timesteps) - 1
    alpha_next = scheduler.one if last else scheduler.alphas_cumprod[scheduler.timesteps[step + 1]]
    if config.prediction_type == "epsilon":
        clip, noise = (x - (1 - alpha) ** 0.5 * made) / alpha**0.5, made
    elif config.prediction_type == "sample":
        clip, noise = made, (x - alpha**0.5 * made) / (1 - alpha) ** 0.5
    else:
        clip, noise = alpha**0.5 * x - (1 - alpha) ** 0.5 * made, alpha**0.5 * made + (1 - alpha) ** 0.5 * x
    if config.clip_sample:
        clip = clip.clamp(-config.clip_sample_range, config.clip_sample_range)
    return alpha_next**0.5 * clip + (1 - alpha_next) ** 0.5 * noise
