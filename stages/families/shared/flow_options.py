"""Options of denoising by flow matching: the sampler with its schedule, guidance, and step caches. Imports no torch.

A family that takes them declares `num_inference_steps`, by `default_steps`, `guidance_scale`, `shift` and `sigma_grid`
beside them. Its check calls `check_schedule`, `check_guidance` and `check_step_cache`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stages.families.shared.common_options import first_misfit
from stages.runtime.errors import UsageError, shown
from stages.runtime.options import Options, option

SAMPLERS = ("unipc", "euler", "dpm++", "lcm")
GUIDERS = ("cfg", "apg", "cfg_zero_star")
SIGMA_GAP = 0.0001  # smallest difference of two sigmas: solvers divide by it, in float32
CACHES, CALIBRATE = ("first_block", "magcache", "taylorseer"), "calibrate"
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


def default_threshold(variant: str, values: Mapping[str, Any]) -> float:
    """The threshold that the library has for a cache."""
    return {"first_block": 0.05, "magcache": 0.06}.get(values["step_cache"], 0.0)


class StepCacheOptions(Options):
    step_cache: str = option(
        "none",
        "Leaves out the blocks of the transformer in steps where they change little, and takes what they added before: "
        "first_block, where the first block adds what it added before; magcache, by the ratios in mag_ratios; taylorseer, "
        "at regular steps, extrapolated; calibrate leaves out nothing and logs the ratios for magcache",
        choices=("none", *CACHES, CALIBRATE),
        reloads=True,
        neutral="none",
    )
    cache_threshold: float = option(
        default_threshold,
        "Largest change at which a step is left out: of the first block's addition, relative (first_block), or the error "
        "summed up since the last whole step (magcache); 0 leaves out no step",
        minimum=0,
        maximum=100,
        neutral=0.0,
        default_text="first_block: 0.05, magcache: 0.06",
    )
    mag_ratios: list[float] = option(
        [],
        "Ratio of each step for magcache, as step_cache calibrate logs them, of two experts for the high-noise one",
        minimum=0,
        maximum=10**6,
        neutral=[],
    )
    mag_ratios_2: list[float] = option(
        [], "Ratio of each step for magcache of the low-noise expert (14b, 14b-t2v)", minimum=0, maximum=10**6, neutral=[]
    )
    cache_start: float = option(
        0.2, "Share of the steps that a cache does not touch, at the beginning", minimum=0, maximum=1, neutral=0.2
    )
    cache_skips: int = option(
        3, "Most steps in a row that magcache leaves out", unit="steps", minimum=1, maximum=999, neutral=3
    )
    cache_interval: int = option(
        3,
        "taylorseer computes all blocks in one of this many steps; 1 leaves out no step",
        unit="steps",
        minimum=1,
        maximum=999,
        neutral=3,
    )
    cache_order: int = option(
        1, "Order of the extrapolation of taylorseer; 0 repeats the last step", minimum=0, maximum=4, neutral=1
    )


# options that only some choices of another option read: by that option, with these choices
READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "guider": {
        "apg_eta": ("apg",),
        "apg_momentum": ("apg",),
        "apg_norm_threshold": ("apg",),
        "zero_init_steps": ("cfg_zero_star",),
    },
    "step_cache": {
        "cache_threshold": ("first_block", "magcache"),
        "mag_ratios": ("magcache",),
        "mag_ratios_2": ("magcache",),
        "cache_start": ("magcache", "taylorseer"),
        "cache_skips": ("magcache",),
        "cache_interval": ("taylorseer",),
        "cache_order": ("taylorseer",),
    },
}
NEUTRAL = {one.name: one.neutral for options in (GuidanceOptions, StepCacheOptions) for one in options.declared}
# the values of other options that go with a step cache
WITH_CACHE: dict[str, tuple] = {
    "checkpoint_every": (0,),
    "skip_layers": ([],),
    "gpus": (1,),
    "offload_stream": (None, False),
}
WITH_MAGCACHE: dict[str, tuple] = {"guidance_interval": (WHOLE,), "guider": ("cfg",)}  # it counts the passes
FEWEST = 8  # steps of a schedule whose neighbours are alike enough for a cache


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
    check_interval("guidance_interval", values, steps)
    check_readers("guider", values)
    for name in ("skip_layer_scale", "skip_layer_interval"):
        if values[name] != NEUTRAL[name] and not values["skip_layers"]:
            raise UsageError(f"{name} is {shown(values[name])} and skip_layers is empty", f"leave {name} out")
    for name in ("guider", "guidance_interval"):
        if values[name] != NEUTRAL[name] and max(scales) <= 1:
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


def check_readers(selector: str, values: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that is given and that the choice of the option `selector` does not read."""
    for name, readers in READERS[selector].items():
        if values[selector] not in readers and values[name] != NEUTRAL[name]:
            raise UsageError(
                f"{name} is {shown(values[name])} and {selector} is {values[selector]}",
                f"leave {name} out or set {selector} to {' or '.join(readers)}",
            )


def check_interval(name: str, values: Mapping[str, Any], steps: int) -> None:
    """Raise UsageError for an option that is no interval of steps."""
    interval = values[name]
    if len(interval) != 2 or interval[0] >= interval[1]:
        raise UsageError(f"{name} is {shown(interval)}", "give two numbers, the first below the second, such as [0.0, 0.5]")
    if not any(in_interval(step, steps, interval) for step in range(steps)):
        raise UsageError(f"{name} is {shown(interval)}, in which there is none of {steps} steps", "choose a wider one")


def check_step_cache(values: Mapping[str, Any]) -> None:
    """Raise UsageError for options of a step cache that do not go together, or not with the other options."""
    cache = values["step_cache"]
    check_readers("step_cache", values)
    if cache not in CACHES:
        return
    if values["num_inference_steps"] < FEWEST:
        steps = f"step_cache is {cache} and num_inference_steps {values['num_inference_steps']}"
        raise UsageError(f"{steps}: so few steps are too different to leave one out", "leave step_cache out")
    if values["sampler"] == "lcm":
        raise UsageError(f"step_cache is {cache} and sampler lcm adds new noise in each step", "leave step_cache out")
    fitting = WITH_CACHE | (WITH_MAGCACHE if cache == "magcache" else {})
    if name := first_misfit(values, fitting):
        raise UsageError(f"step_cache is {cache} and {name} is {shown(values[name])}", "leave one of them out")
    if cache == "magcache" and not values["mag_ratios"]:
        raise UsageError(
            "step_cache is magcache and mag_ratios is empty",
            "run generate once with step_cache calibrate and take the ratios from the event mag_ratios of its log",
        )
