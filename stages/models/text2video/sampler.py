"""Denoising by DDPM (Ho et al. 2020, arXiv:2006.11239) or DDIM (Song et al. 2020, arXiv:2010.02502)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from stages.runtime.errors import ItemError

SAMPLERS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}


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
    scheduler = SAMPLERS[sampler].from_config(schedule, timestep_spacing="trailing")
    scheduler.set_timesteps(steps, device=x.device)
    dtype = text.dtype
    extra = {"generator": generator} if sampler == "ddpm" else {}
    for step, timestep in enumerate(scheduler.timesteps):
        made = model(x.to(dtype), timestep[None], text).float()
        if guidance > 1:
            without = model(x.to(dtype), timestep[None], negative).float()
            made = without + guidance * (made - without)
        x = scheduler.step(made, timestep, x, **extra).prev_sample
        if not torch.isfinite(x).all():
            raise ItemError(
                f"the clip became NaN or infinite at step {step + 1} of {steps}",
                "try --dtype float32 or bfloat16, and a lower guidance_scale",
            )
        after_step()
    return x
