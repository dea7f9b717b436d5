"""The denoising loop of Wan2.2 image-to-video: flow matching, solved by UniPC (Zhao et al. 2023, arXiv:2302.04867).

`denoise` is a function of its arguments. The solver's history is part of the `State` that it takes and returns. A run can
therefore stop after any step, be saved to a file, resume in another process, and produce the same bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from stages.families.shared.item import PRECISION_OR_GUIDANCE, check_finite


@dataclass(frozen=True)
class Condition:
    """The inputs of the denoiser beside the noisy latents.

    Attributes:
        image: normalised latents of the first frame, float32 [1, C, 1 or T, h, w].
        mask: 1 where `image` is given, else 0, float32 [1, 4 or 1, T, h, w].
        prompt: prompt embeddings [1, L, D], in the transformer's dtype.
        negative: negative prompt embeddings [1, L, D], in the transformer's dtype; None without guidance.
    """

    image: torch.Tensor
    mask: torch.Tensor
    prompt: torch.Tensor
    negative: torch.Tensor | None


@dataclass(frozen=True)
class State:
    """Latents `x` float32 [1, C, T, h, w] after `step` steps, and the history of UniPC under diffusers' names."""

    step: int
    x: torch.Tensor
    model_outputs: tuple[torch.Tensor | None, ...] = ()  # latest predictions of the clean latents, oldest first
    last_sample: torch.Tensor | None = None  # the corrected latents that the last step started from
    this_order: int = 1  # order of the last step
    lower_order_nums: int = 0  # steps that count towards the order of the next one


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal noise, float32, drawn on the CPU so that a seed gives the same noise on every machine."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def make_scheduler(
    config: Mapping[str, Any], steps: int, shift: float, device: torch.device, sigma_grid: str = "wan"
) -> UniPCMultistepScheduler:
    """Make a UniPC scheduler for flow matching.

    Its sigmas are shift * sigma / (1 + (shift - 1) * sigma) for the sigmas of a grid of `SIGMA_GRIDS`. `config` is the
    config of the repository's scheduler; the shift and the grid in it are ignored.
    """
    scheduler = UniPCMultistepScheduler.from_config(
        dict(config), flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    scheduler.set_timesteps(device=device, sigmas=SIGMA_GRIDS[sigma_grid](steps))
    scheduler.set_begin_index(0)  # else it looks up the first timestep, which is ambiguous where two steps share it
    return scheduler


def wan_grid(steps: int) -> np.ndarray:
    """Sigmas, float64 [steps], evenly spaced from 0.999 down towards 0, as in Wan2.2's FlowUniPCMultistepScheduler and in
    diffusers before 0.37. (Wan2.2 rounds 0.999 to float32 first, which changes a sigma by at most 6e-8.)"""
    return np.linspace(0.999, 0, steps + 1)[:-1]


def diffusers_grid(steps: int) -> np.ndarray:
    """Sigmas, float64 [steps], evenly spaced from 1 down towards 1 / 1000: the default of diffusers since 0.37."""
    return np.linspace(1, 1 / 1000, steps + 1)[:-1]


SIGMA_GRIDS = {"wan": wan_grid, "diffusers": diffusers_grid}


def switch_step(scheduler: UniPCMultistepScheduler, boundary_ratio: float) -> int:
    """Number of steps of the high-noise expert: those at timesteps >= boundary_ratio * 1000."""
    return int((scheduler.timesteps >= boundary_ratio * scheduler.config.num_train_timesteps).sum())


def concat_condition(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's input for the 14b: `x`, mask and image latents as channels [1, 16 + 4 + 16, T, h, w]; one timestep [1]."""
    return torch.cat([x, condition.mask, condition.image], dim=1), t.expand(1)


def inpaint_condition(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's input for the 5b: `x` with the known latents put in [1, 48, T, h, w]; a timestep per token
    [1, T * h/2 * w/2], which is 0 for known tokens."""
    noise_mask = 1 - condition.mask
    return apply_known(x, condition), (noise_mask[0, 0, :, ::2, ::2] * t).flatten()[None]


def apply_known(x: torch.Tensor, condition: Condition) -> torch.Tensor:
    """Replace `x` by the condition's image latents where the mask is 1."""
    noise_mask = 1 - condition.mask
    return (1 - noise_mask) * condition.image + noise_mask * x


@torch.no_grad()
def denoise(
    model: torch.nn.Module,
    state: State,
    scheduler: UniPCMultistepScheduler,
    last: int,
    condition: Condition,
    make_input: Callable[[torch.Tensor, torch.Tensor, Condition], tuple[torch.Tensor, torch.Tensor]],
    guidance: float,
    dtype: torch.dtype,
    after_step: Callable[[State], None] = lambda state: None,
) -> State:
    """Run the denoising steps from `state.step` up to, not including, `last`.

    Args:
        model: predicts the velocity, computing in `dtype`. Latents stay float32.
        make_input: makes the model's input from latents and condition: `concat_condition` or `inpaint_condition`.
        guidance: scale of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598). Above 1 each step runs the model
            a second time, on the negative prompt. Each expert has a scale of its own; diffusers decides by the high-noise
            expert's scale whether any step is guided.
        after_step: called with the new state after each step.

    Raises:
        ItemError: a prediction or the latents are not finite.
    """
    restore_state(scheduler, state)
    for step in range(state.step, last):
        t, at = scheduler.timesteps[step], f"step {step + 1} of {len(scheduler.timesteps)}"
        hidden, timestep = make_input(state.x, t, condition)
        hidden = hidden.to(dtype)
        velocity = model(hidden, timestep, condition.prompt, return_dict=False)[0]
        if guidance > 1:
            negative = model(hidden, timestep, condition.negative, return_dict=False)[0]
            velocity = negative + guidance * (velocity - negative)
        check_finite(velocity, "the prediction", PRECISION_OR_GUIDANCE, at)
        x = scheduler.step(velocity, t, state.x, return_dict=False)[0]
        check_finite(x, "latents", PRECISION_OR_GUIDANCE, at)
        state = capture_state(scheduler, x, step + 1)
        after_step(state)
    return state


def capture_state(scheduler: UniPCMultistepScheduler, x: torch.Tensor, step: int) -> State:
    """The state after a step. The scheduler has no public accessor for it, hence the pinned version of diffusers."""
    return State(
        step, x, tuple(scheduler.model_outputs), scheduler.last_sample, scheduler.this_order, scheduler.lower_order_nums
    )


def restore_state(scheduler: UniPCMultistepScheduler, state: State) -> None:
    """Set a scheduler to where it was after `state.step` steps."""
    if state.step == 0:
        return
    before = range(state.step - len(state.model_outputs), state.step)
    scheduler.model_outputs = list(state.model_outputs)
    scheduler.timestep_list = [scheduler.timesteps[step] if step >= 0 else None for step in before]
    scheduler.last_sample, scheduler.this_order = state.last_sample, state.this_order
    scheduler.lower_order_nums = state.lower_order_nums
    scheduler._step_index = state.step
