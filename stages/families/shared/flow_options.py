"""Options of denoising by flow matching: the sampler and its schedule. Imports no torch.

A family that takes them declares `num_inference_steps`, by `default_steps`, `shift` and `sigma_grid` beside them. Its check
calls `check_schedule`.
"""

from collections.abc import Mapping
from typing import Any

from stages.runtime.errors import UsageError, shown
from stages.runtime.options import Options, option

SAMPLERS = ("unipc", "euler", "dpm++", "lcm")
SIGMA_GAP = 0.0001  # smallest difference of two sigmas: solvers divide by it, in float32


def check_sigma(value: float) -> str | None:
    return None if value >= SIGMA_GAP else f"it must be at least {SIGMA_GAP}; the last step goes to 0 by itself"


class SamplerOptions(Options):
    sampler: str = option(
        "unipc",
        "Solver: unipc; euler, which most few-step weights were made for; dpm++, of second order; lcm, which predicts the "
        "clean clip and adds new noise in each step",
        choices=SAMPLERS,
        aliases=("sample_solver",),
        neutral="unipc",
    )
    sigmas: list[float] = option(
        [],
        "Sigma of each step as the model gets it, from 1 down, instead of num_inference_steps, shift and sigma_grid",
        minimum=0,
        maximum=1,
        check=check_sigma,
        neutral=[],
        default_text="by num_inference_steps, shift and sigma_grid",
    )
    timesteps: list[int] = option(
        [],
        "Timestep of each step as the model gets it, from 1000 down: 1000 times its sigma, instead of sigmas",
        minimum=1,
        maximum=1000,
        neutral=[],
        default_text="by num_inference_steps, shift and sigma_grid",
    )


def default_steps(steps: int) -> Any:
    """The default of num_inference_steps: as many as are listed, else `steps`."""
    return lambda variant, values: len(values["sigmas"] or values["timesteps"]) or steps


def check_schedule(values: Mapping[str, Any]) -> None:
    """Raise UsageError for listed steps that are no schedule, and for other options that contradict them."""
    listed = {name: values[name] for name in ("sigmas", "timesteps") if values[name]}
    if len(listed) == 2:
        raise UsageError("sigmas and timesteps are both given", "leave one of them out")
    for name, steps in listed.items():
        gap = SIGMA_GAP if name == "sigmas" else 1
        if any(before - after < gap * 0.999 for before, after in zip(steps, steps[1:], strict=False)):
            raise UsageError(f"{name} is {shown(steps)}", f"each has to be at least {gap} below the one before")
        for other, fitting in (("num_inference_steps", len(steps)), ("shift", 1), ("sigma_grid", "wan")):
            if values[other] != fitting:
                raise UsageError(
                    f"{other} is {values[other]} and {name} lists {len(steps)} steps as they are",
                    f"leave {other} out or set it to {fitting}",
                )
