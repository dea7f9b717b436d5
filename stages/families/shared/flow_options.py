"""Options of denoising by flow matching: the sampler with its schedule, and guidance. Imports no torch.

A family that takes them declares `num_inference_steps`, by `default_steps`, `guidance_scale`, `shift` and `sigma_grid`
beside them. Its check calls `check_schedule` and `check_guidance`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stages.runtime.errors import UsageError, shown
from stages.runtime.options import Options, option

SAMPLERS = ("unipc", "euler", "dpm++", "lcm")
GUIDERS = ("cfg", "apg", "cfg_zero_star")
SIGMA_GAP = 0.0001  # smallest difference of two sigmas: solvers divide by it, in float32
WHOLE = [0.0, 1.0]  # the interval of all steps


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


class GuidanceOptions(Options):
    guider: str = option(
        "cfg",
        "Form of guidance: cfg, plain classifier-free guidance; apg, without its part along the prediction, against "
        "oversaturation; cfg_zero_star, with a fitted scale of the negative prediction",
        choices=GUIDERS,
        neutral="cfg",
    )
    guidance_interval: list[float] = option(
        WHOLE,
        "Steps that are guided, as shares of all steps: from the first up to, not including, the second number; the other "
        "steps take one pass",
        minimum=0,
        maximum=1,
        neutral=WHOLE,
    )
    apg_eta: float = option(
        0.0,
        "Share that guider apg keeps of guidance along the prediction; with 1 guidance is as plain as with cfg",
        minimum=0,
        maximum=1,
        neutral=0.0,
    )
    apg_momentum: float = option(
        0.0,
        "Weight of the guidance of earlier steps with guider apg; below 0 it pushes away from them",
        minimum=-1,
        maximum=1,
        neutral=0.0,
    )
    apg_norm_threshold: float = option(
        0.0, "Limit of the norm of guidance with guider apg; 0 is none", minimum=0, maximum=10**9, neutral=0.0
    )
    zero_init_steps: int = option(
        1,
        "First steps that guider cfg_zero_star leaves out: their prediction is 0",
        unit="steps",
        minimum=0,
        maximum=999,
        neutral=1,
    )
    skip_layers: list[int] = option(
        [],
        "Blocks of the transformer, from 0, that a further pass leaves out: the result is pushed away from its prediction "
        "(skip-layer guidance)",
        minimum=0,
        maximum=10**4,
        neutral=[],
    )
    skip_layer_scale: float = option(2.8, "Scale of skip-layer guidance", minimum=0, maximum=100, neutral=2.8)
    skip_layer_interval: list[float] = option(
        [0.01, 0.2],
        "Steps with skip-layer guidance, as shares of all steps: from the first up to, not including, the second number",
        minimum=0,
        maximum=1,
        neutral=[0.01, 0.2],
    )


ONLY_WITH = {  # options that only one guider reads
    "apg_eta": "apg",
    "apg_momentum": "apg",
    "apg_norm_threshold": "apg",
    "zero_init_steps": "cfg_zero_star",
}
DEFAULTS = {one.name: one.default for one in GuidanceOptions.declared}


def default_steps(steps: int) -> Callable[[str, Mapping[str, Any]], int]:
    """The default of num_inference_steps: as many as are listed, else `steps`."""
    return lambda variant, values: len(values["sigmas"] or values["timesteps"]) or steps


def in_interval(step: int, steps: int, interval: Sequence[float]) -> bool:
    """Whether a step, counted from 0, of `steps` is in an interval [start, stop) of shares of all steps."""
    return interval[0] <= step / steps < interval[1]


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


def check_guidance(values: Mapping[str, Any], scales: Sequence[float]) -> None:
    """Raise UsageError for options of guidance that do not go together. `scales` are the guidance scales of the experts."""
    steps, guider = values["num_inference_steps"], values["guider"]
    changed = [name for name, default in DEFAULTS.items() if values[name] != default]
    check_interval("guidance_interval", values, steps)
    for name in changed:
        if name in ONLY_WITH and guider != ONLY_WITH[name]:
            raise UsageError(
                f"{name} is {values[name]} and guider is {guider}", f"leave {name} out or set guider to {ONLY_WITH[name]}"
            )
        if name in ("skip_layer_scale", "skip_layer_interval") and not values["skip_layers"]:
            raise UsageError(f"{name} is {shown(values[name])} and skip_layers is empty", f"leave {name} out")
        if name in ("guider", "guidance_interval") and max(scales) <= 1:
            raise UsageError(
                f"{name} is {shown(values[name])} and guidance_scale {max(scales)} switches guidance off",
                f"leave {name} out or set guidance_scale above 1",
            )
    if guider == "cfg_zero_star" and values["zero_init_steps"] >= steps:
        raise UsageError(
            f"zero_init_steps is {values['zero_init_steps']} of {steps} steps", "choose a number below num_inference_steps"
        )
    if values["skip_layers"]:
        check_interval("skip_layer_interval", values, steps)
        if guider != "cfg":
            raise UsageError(f"skip_layers is {values['skip_layers']} and guider is {guider}", "leave one of them out")


def check_interval(name: str, values: Mapping[str, Any], steps: int) -> None:
    """Raise UsageError for an option that is no interval of steps."""
    interval = values[name]
    if len(interval) != 2 or interval[0] >= interval[1]:
        raise UsageError(f"{name} is {shown(interval)}", "give two numbers, the first below the second, such as [0.0, 0.5]")
    if not any(in_interval(step, steps, interval) for step in range(steps)):
        raise UsageError(f"{name} is {shown(interval)}, in which there is none of {steps} steps", "choose a wider one")
