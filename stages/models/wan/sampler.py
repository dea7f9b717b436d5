"""The denoising loop of Wan2.2 image-to-video: flow matching, solved by UniPC (Zhao et al. 2023, arXiv:2302.04867).

`denoise` is a function of its arguments: the solver's memory is part of the `State` that goes in and comes out, so that a
run can stop after any step, wait in a file, go on in another process, and end in the same bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from stages.runtime.errors import ItemError


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told: `image` latents float32 [1, C, 1 or T, h, w], their mask `known` float32
    [1, 4 or 1, T, h, w], the embeddings of `prompt` and `negative` [1, L, D] in the transformer's dtype."""

    image: torch.Tensor
    known: torch.Tensor
    prompt: torch.Tensor
    negative: torch.Tensor | None


@dataclass(frozen=True)
class State:
    """Latents `x` float32 [1, C, T, h, w] after `step` steps, and what UniPC remembers of the steps before."""

    step: int
    x: torch.Tensor
    outputs: tuple[torch.Tensor | None, ...] = ()  # latest predictions of the clean latents, oldest first
    sample: torch.Tensor | None = None  # the corrected latents that the last step started from
    order: int = 1  # of the last step
    warm: int = 0  # steps that count for the order of the next


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal float32, made on the CPU: the same on every machine."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def make_scheduler(
    config: Mapping[str, Any], steps: int, shift: float, device: torch.device, sigma_grid: str = "wan"
) -> UniPCMultistepScheduler:
    """UniPC for flow matching over sigma' = shift * sigma / (1 + (shift - 1) * sigma), sigma from a grid of `SIGMA_GRIDS`.

    `config` is that of the repository's scheduler; its shift and its grid are not used.
    """
    scheduler = UniPCMultistepScheduler.from_config(
        dict(config), flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    scheduler.set_timesteps(device=device, sigmas=SIGMA_GRIDS[sigma_grid](steps))
    scheduler.set_begin_index(0)  # it would look the first timestep up, and go wrong where two steps share it
    return scheduler


def wan_grid(steps: int) -> np.ndarray:
    """Sigmas, float64 [steps], falling evenly from 0.999 towards 0, as in Wan2.2's FlowUniPCMultistepScheduler and diffusers
    before 0.37. (Wan2.2 rounds 0.999 to float32 first, which changes a sigma by 6e-8 at most.)"""
    return np.linspace(0.999, 0, steps + 1)[:-1]


def diffusers_grid(steps: int) -> np.ndarray:
    """Sigmas, float64 [steps], falling evenly from 1 towards 1 / 1000: the default of diffusers since 0.37."""
    return np.linspace(1, 1 / 1000, steps + 1)[:-1]


SIGMA_GRIDS = {"wan": wan_grid, "diffusers": diffusers_grid}


def switch_step(scheduler: UniPCMultistepScheduler, boundary_ratio: float) -> int:
    """How many steps the high-noise expert does: those at timesteps >= boundary_ratio * 1000."""
    return int((scheduler.timesteps >= boundary_ratio * scheduler.config.num_train_timesteps).sum())


def concatenated(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """14b: the condition as further channels, [1, 16 + 4 + 16, T, h, w], and one timestep [1]."""
    return torch.cat([x, condition.known, condition.image], dim=1), t.expand(1)


def replaced(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """5b: what is known in the place of the noise, [1, 48, T, h, w], and a timestep per token [1, T * h/2 * w/2]."""
    made = 1 - condition.known
    return imposed(x, condition), (made[0, 0, :, ::2, ::2] * t).flatten()[None]


def imposed(x: torch.Tensor, condition: Condition) -> torch.Tensor:
    """`x` with the condition's latents where they are known."""
    made = 1 - condition.known
    return (1 - made) * condition.image + made * x


@torch.no_grad()
def denoise(
    model: torch.nn.Module,
    state: State,
    scheduler: UniPCMultistepScheduler,
    last: int,
    condition: Condition,
    join: Callable[[torch.Tensor, torch.Tensor, Condition], tuple[torch.Tensor, torch.Tensor]],
    guidance: float,
    dtype: torch.dtype,
    after_step: Callable[[State], None] = lambda state: None,
) -> State:
    """Do the steps from `state.step` up to, not including, `last`.

    `model` predicts the velocity; `join` makes its input of the latents and the condition (`concatenated`, `replaced`).
    Guidance above 1 adds a second pass with the negative prompt (Ho & Salimans 2022, arXiv:2207.12598): per expert, where
    diffusers asks the high-noise expert's scale alone. Latents stay float32; the model computes in `dtype`.
    Raises ItemError when a prediction or the latents are not finite.
    """
    restore(scheduler, state)
    for step in range(state.step, last):
        t = scheduler.timesteps[step]
        hidden, timestep = join(state.x, t, condition)
        hidden = hidden.to(dtype)
        velocity = model(hidden, timestep, condition.prompt, return_dict=False)[0]
        if guidance > 1:
            negative = model(hidden, timestep, condition.negative, return_dict=False)[0]
            velocity = negative + guidance * (velocity - negative)
        check_finite("the prediction", velocity, step, len(scheduler.timesteps))
        x = scheduler.step(velocity, t, state.x, return_dict=False)[0]
        check_finite("latents", x, step, len(scheduler.timesteps))
        state = remember(scheduler, x, step + 1)
        after_step(state)
    return state


def check_finite(name: str, tensor: torch.Tensor, step: int, steps: int) -> None:
    if not torch.isfinite(tensor).all():
        raise ItemError(
            f"{name} became NaN or infinite at step {step + 1} of {steps}",
            "try --dtype float32 or bfloat16, and a lower guidance_scale",
        )


def remember(scheduler: UniPCMultistepScheduler, x: torch.Tensor, step: int) -> State:
    """The state after a step. The scheduler has no public way to tell it, hence the pinned version of diffusers."""
    return State(
        step, x, tuple(scheduler.model_outputs), scheduler.last_sample, scheduler.this_order, scheduler.lower_order_nums
    )


def restore(scheduler: UniPCMultistepScheduler, state: State) -> None:
    """Put a scheduler where it was after `state.step` steps."""
    if state.step == 0:
        return
    before = range(state.step - len(state.outputs), state.step)
    scheduler.model_outputs = list(state.outputs)
    scheduler.timestep_list = [scheduler.timesteps[step] if step >= 0 else None for step in before]
    scheduler.last_sample, scheduler.this_order, scheduler.lower_order_nums = state.sample, state.order, state.warm
    scheduler._step_index = state.step
