"""DDIM (Song et al. 2020, arXiv:2010.02502) as DynamiCrafter uses it: the coefficients in float64, the state in float32.

In float32 the coefficients end in NaN: where the noise schedule begins without any signal (arXiv:2305.08891) and eta is 1,
all of the first step's noise is fresh, and what is left for the direction is the root of 0, or of -6e-8 after rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

TRAINED = 1000  # timesteps
BETAS = 0.00085, 0.012
TURNING = 400  # timestep up to which the scale of the clip goes from 1 to `base_scale`

Predict = Callable[[torch.Tensor, int], torch.Tensor]


class Parameterisation(NamedTuple):
    """What a variant was trained to predict ("epsilon" or "v"), on which noise schedule, and at which timesteps it is run.

    `base_scale`: clips were multiplied by a scale that falls to this one with the noise.
    """

    predicts: str
    zero_snr: bool
    trailing: bool
    base_scale: float


PARAMETERISATIONS = {
    "256": Parameterisation("epsilon", zero_snr=False, trailing=False, base_scale=1.0),
    "512": Parameterisation("v", zero_snr=True, trailing=True, base_scale=0.7),
    "1024": Parameterisation("v", zero_snr=True, trailing=True, base_scale=0.3),
    "512_interp": Parameterisation("v", zero_snr=True, trailing=True, base_scale=0.7),
}


class Step(NamedTuple):
    """One step: the part of signal (alpha bar) now and after it, the noise added, and by what the clip's scale grows."""

    timestep: int
    alpha: float
    alpha_next: float
    sigma: float
    growth: float


def signal(zero_snr: bool) -> np.ndarray:
    """Alpha bar of each timestep, float64 [1000]; with `zero_snr` moved and stretched so that the last one is 0."""
    betas = np.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, TRAINED, dtype=np.float64) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    if zero_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def timesteps(steps: int, trailing: bool) -> list[int]:
    """Exactly `steps` timesteps, from much noise to little.

    For numbers that divide 1000 these are the published program's. For others that has a further one at -1 (trailing: 61,
    103, ...), or more than were asked for, of which some are beyond 999 (leading: 30, 3, ...).
    """
    if trailing:
        return [int(t) - 1 for t in np.round(np.arange(TRAINED, 0, -TRAINED / steps))[:steps]]
    leading = [number * TRAINED // steps for number in range(steps)]
    offset = min(1, TRAINED - 1 - leading[-1])
    return [t + offset for t in reversed(leading)]


def schedule(parameterisation: Parameterisation, steps: int, eta: float) -> list[Step]:
    """The steps of a run. `eta`: 0 adds no noise, 1 as much as DDPM (formula 16)."""
    alphas = signal(parameterisation.zero_snr)
    at = timesteps(steps, parameterisation.trailing)
    made = []
    for now, after in zip(at, [*at[1:], None]):
        # below the last timestep there is still the noise of timestep 0
        alpha, alpha_next = float(alphas[now]), float(alphas[0 if after is None else after])
        variance = eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
        base = parameterisation.base_scale
        growth = 1.0 if after is None else clip_scale(after, base) / clip_scale(now, base)
        made.append(Step(now, alpha, alpha_next, math.sqrt(max(variance, 0.0)), growth))
    return made


def clip_scale(timestep: int, base: float) -> float:
    """By what a clip was multiplied in training at a timestep."""
    return 1 + (base - 1) * timestep / (TURNING - 1) if timestep < TURNING else base


@torch.no_grad()
def denoise(
    predict: Predict,
    x: torch.Tensor,
    parameterisation: Parameterisation,
    steps: list[Step],
    noises: Iterable[torch.Tensor],
    after_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """From noise `x`, float32 [B, C, T, h, w], to latents (formula 12).

    `predict(x, timestep)` gives what the parameterisation says, float32. A tensor of `noises`, of the form of `x`, is taken
    for each step that adds noise: none where eta is 0.
    """
    fresh = iter(noises)
    for step in steps:
        made = predict(x, step.timestep)
        root, rest = math.sqrt(step.alpha), math.sqrt(1 - step.alpha)
        if parameterisation.predicts == "v":
            clip, noise = root * x - rest * made, root * made + rest * x
        else:
            clip, noise = (x - rest * made) / root, made
        direction = math.sqrt(max(1 - step.alpha_next - step.sigma**2, 0.0))
        x = math.sqrt(step.alpha_next) * step.growth * clip + direction * noise
        if step.sigma:
            x = x + step.sigma * next(fresh)
        after_step()
    return x


def guided(with_prompt: torch.Tensor, without: torch.Tensor, guidance: float, rescale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2207.12598), its spread brought back by `rescale`, 0 to 1, towards that of the
    prediction with the prompt (arXiv:2305.08891, section 3.4); float32 [B, ...]."""
    made = without + guidance * (with_prompt - without)
    if rescale:
        spread = [t.flatten(1).std(dim=1).view(-1, *[1] * (t.ndim - 1)) for t in (with_prompt, made)]
        made = rescale * (made * spread[0] / spread[1]) + (1 - rescale) * made
    return made
