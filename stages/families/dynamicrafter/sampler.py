"""DDIM (Song et al. 2020, arXiv:2010.02502) as DynamiCrafter uses it: the coefficients in float64, the state in float32.

In float32 the coefficients can be NaN. With zero terminal SNR (arXiv:2305.08891) and eta 1, all noise of the first step is
new. The coefficient of the direction is then the square root of 0, or of -6e-8 after rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

NUM_TRAIN_TIMESTEPS = 1000
BETAS = 0.00085, 0.012
RESCALE_TIMESTEPS = 400  # over which the scale of the latents goes from 1 to `base_scale`

Predict = Callable[[torch.Tensor, int], torch.Tensor]


class Parameterisation(NamedTuple):
    """What a variant predicts ("epsilon" or "v"), its noise schedule, and the spacing of its timesteps.

    `zero_snr`: the schedule is rescaled to zero terminal SNR. `trailing`: timesteps are spaced from the end, else from the
    start. `base_scale`: in training, the latents are scaled by a factor that falls from 1 to this one as noise rises.
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
    """One step: alphas_cumprod before and after it, the standard deviation of the noise added, and the ratio of the scales
    of the latents after and before it."""

    timestep: int
    alpha: float
    alpha_next: float
    sigma: float
    scale_ratio: float


def alphas_cumprod(zero_snr: bool) -> np.ndarray:
    """Cumulative product of the alphas, float64 [1000]; with `zero_snr` rescaled to 0 at the last timestep."""
    betas = np.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, NUM_TRAIN_TIMESTEPS, dtype=np.float64) ** 2
    root = np.sqrt(np.cumprod(1 - betas))
    if zero_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root**2


def timesteps(steps: int, trailing: bool) -> list[int]:
    """Exactly `steps` timesteps, descending.

    They equal those of the published program if `steps` divides 1000. Otherwise that program may add a timestep -1
    (trailing: 61, 103, ...), or return more timesteps than requested, some beyond 999 (leading: 30, 3, ...).
    """
    if trailing:
        return [int(t) - 1 for t in np.round(np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / steps))[:steps]]
    leading = [number * NUM_TRAIN_TIMESTEPS // steps for number in range(steps)]
    offset = min(1, NUM_TRAIN_TIMESTEPS - 1 - leading[-1])
    return [t + offset for t in reversed(leading)]


def schedule(parameterisation: Parameterisation, steps: int, eta: float) -> list[Step]:
    """All steps of the sampler, in order. `eta`: 0 adds no noise, 1 as much as DDPM (formula 16)."""
    alphas = alphas_cumprod(parameterisation.zero_snr)
    descending = timesteps(steps, parameterisation.trailing)
    result = []
    for now, after in zip(descending, [*descending[1:], None]):
        # the state after the last step still has the noise of timestep 0
        alpha, alpha_next = float(alphas[now]), float(alphas[0 if after is None else after])
        variance = eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
        base = parameterisation.base_scale
        scale_ratio = 1.0 if after is None else latent_scale(after, base) / latent_scale(now, base)
        result.append(Step(now, alpha, alpha_next, math.sqrt(max(variance, 0.0)), scale_ratio))
    return result


def latent_scale(timestep: int, base: float) -> float:
    """The factor of the latents at a timestep in training; `base` is that from `RESCALE_TIMESTEPS` on."""
    return 1 + (base - 1) * timestep / (RESCALE_TIMESTEPS - 1) if timestep < RESCALE_TIMESTEPS else base


@torch.no_grad()
def denoise(
    predict: Predict,
    x: torch.Tensor,
    parameterisation: Parameterisation,
    steps: list[Step],
    noises: Iterable[torch.Tensor],
    after_step: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Denoise `x`, float32 [B, C, T, h, w], from noise to latents (formula 12).

    `predict(x, timestep)` returns the model's prediction, float32 and of the shape of `x`. Each step that adds noise takes
    one tensor of that shape from `noises`; no step does with eta 0.
    """
    new_noise = iter(noises)
    for step in steps:
        prediction = predict(x, step.timestep)
        signal, noise_level = math.sqrt(step.alpha), math.sqrt(1 - step.alpha)
        if parameterisation.predicts == "v":
            latents, noise = signal * x - noise_level * prediction, signal * prediction + noise_level * x
        else:
            latents, noise = (x - noise_level * prediction) / signal, prediction
        direction = math.sqrt(max(1 - step.alpha_next - step.sigma**2, 0.0))
        x = math.sqrt(step.alpha_next) * step.scale_ratio * latents + direction * noise
        if step.sigma:
            x = x + step.sigma * next(new_noise)
        after_step()
    return x


def apply_guidance(with_prompt: torch.Tensor, without: torch.Tensor, scale: float, rescale: float) -> torch.Tensor:
    """Classifier-free guidance (arXiv:2207.12598) of two predictions, float32 [B, ...].

    `rescale`, 0 to 1, moves the standard deviation of the result towards that of the prediction with the prompt
    (arXiv:2305.08891, section 3.4).
    """
    guided = without + scale * (with_prompt - without)
    if rescale:
        std = [t.flatten(1).std(dim=1).view(-1, *[1] * (t.ndim - 1)) for t in (with_prompt, guided)]
        guided = rescale * (guided * std[0] / std[1]) + (1 - rescale) * guided
    return guided
