"""Solvers of flow matching: diffusers' schedulers, on the sigmas of a published program, of diffusers or of the user.

A model of flow matching predicts the velocity v = noise - clip of x = (1 - sigma) clip + sigma noise. With the clean
clip x0 = x - s v, the step from sigma s to t is:

- euler: x + (t - s) v.
- dpm++: DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095), from this x0 and the one before.
- unipc: UniPC (Zhao et al. 2023, arXiv:2302.04867) of order 2, which corrects x by the new prediction.
- lcm: (1 - t) x0 + t noise, with new noise in each step (Luo et al. 2023, arXiv:2310.04378).
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)

Scheduler: TypeAlias = (
    UniPCMultistepScheduler | DPMSolverMultistepScheduler | FlowMatchEulerDiscreteScheduler | FlowMatchLCMScheduler
)
DRAWING = ("lcm",)  # the samplers that draw noise in each step


def make_scheduler(
    config: Mapping[str, Any],
    steps: int,
    shift: float,
    device: torch.device,
    sigma_grid: str = "wan",
    sampler: str = "unipc",
    sigmas: Sequence[float] = (),
    timesteps: Sequence[int] = (),
) -> Scheduler:
    """Make the scheduler of a sampler, ready for its first step.

    Its sigmas are shift * sigma / (1 + (shift - 1) * sigma) for the sigmas of a grid, with 0 behind the last. The model gets
    1000 times sigma as its timestep, of which unipc and dpm++ drop the fraction, as Wan's own program does.

    Args:
        config: the config of the repository's UniPC scheduler; its shift and its grid are ignored.
        sigma_grid: "wan" for `wan_grid`, "diffusers" for the default of the scheduler in diffusers.
        sigmas: the sigmas of the steps, descending, instead of a grid; `shift` is then 1.
        timesteps: the timesteps of the steps, descending, 1000 times their sigmas, instead of a grid and of sigmas.
    """
    flow = {"use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    scheduler: Any
    if sampler == "unipc":
        scheduler = UniPCMultistepScheduler.from_config(dict(config), **flow)
    elif sampler == "dpm++":
        scheduler = DPMSolverMultistepScheduler.from_config(dict(config), algorithm_type="dpmsolver++", **flow)
    else:
        kinds = {"euler": FlowMatchEulerDiscreteScheduler, "lcm": FlowMatchLCMScheduler}
        scheduler = kinds[sampler](num_train_timesteps=config.get("num_train_timesteps", 1000), shift=shift)
    listed = sigmas or [timestep / 1000 for timestep in timesteps]
    if listed or sigma_grid == "wan":
        set_sigmas(scheduler, np.array(listed) if listed else wan_grid(steps, sampler), device)
    else:
        scheduler.set_timesteps(steps, device=device)
    if timesteps:  # exactly these, not 1000 times a rounded sigma
        scheduler.timesteps = torch.tensor(timesteps, device=device, dtype=scheduler.timesteps.dtype)
    scheduler.set_begin_index(0)  # else it looks up the first timestep, which is ambiguous where two steps share it
    return scheduler


def set_sigmas(scheduler: Any, sigmas: np.ndarray, device: torch.device) -> None:
    """Set the sigmas, float64 [steps] before the shift, and the timesteps that follow from them."""
    if not isinstance(scheduler, DPMSolverMultistepScheduler):
        return scheduler.set_timesteps(sigmas=sigmas, device=device)
    scheduler.set_timesteps(len(sigmas), device=device)  # this one takes no sigmas
    shift = scheduler.config.flow_shift
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0).astype(np.float32))
    scheduler.timesteps = torch.from_numpy(sigmas * scheduler.config.num_train_timesteps).to(device, torch.int64)


def wan_grid(steps: int, sampler: str = "unipc") -> np.ndarray:
    """Sigmas, float64 [steps], evenly spaced down towards 0, of the published program that has the sampler.

    With unipc they begin at 0.999, as in Wan2.2's FlowUniPCMultistepScheduler and in diffusers before 0.37. (Wan2.2 rounds
    0.999 to float32 first, which changes a sigma by at most 6e-8.) With dpm++ they begin at 1, as in get_sampling_sigmas of
    Wan2.2, and with euler and lcm too, as in the programs of lightx2v's weights of few steps.
    """
    return np.linspace(0.999 if sampler == "unipc" else 1, 0, steps + 1)[:-1]


def take_step(
    scheduler: Scheduler, velocity: torch.Tensor, step: int, x: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """The latents, float32, after a step from latents `x`, float32. `generator`, on the CPU, draws the noise of lcm."""
    timestep = scheduler.timesteps[step]
    if isinstance(scheduler, UniPCMultistepScheduler):
        return scheduler.step(velocity, timestep, x, return_dict=False)[0]
    # in float32, because the others round x, or the clean clip, to the precision of the velocity
    return scheduler.step(velocity.float(), timestep, x, generator=generator, return_dict=False)[0]
