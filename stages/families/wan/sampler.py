"""The denoising loop of Wan2.2: flow matching, by the solvers of shared/solvers.py.

`denoise` is a function of its arguments. The solver's history is part of the `State` that it takes and returns, and so is
the generator of the noise that a sampler draws. A run can therefore stop after any step, be saved to a file, resume in
another process, and produce the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import UniPCMultistepScheduler

from stages.families.shared.guidance import Guidance, without_blocks
from stages.families.shared.item import PRECISION_OR_GUIDANCE, check_finite
from stages.families.shared.solvers import DRAWING, Scheduler, take_step
from stages.families.shared.step_cache import NEGATIVE, PROMPT, cache_of


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
    """Latents `x` float32 [1, C, T, h, w] after `step` steps, and the history of the solver under diffusers' names."""

    step: int
    x: torch.Tensor
    model_outputs: tuple[torch.Tensor | None, ...] = ()  # latest predictions of the clean latents, oldest first
    last_sample: torch.Tensor | None = None  # the corrected latents that the last step started from
    this_order: int = 1  # order of the last step
    lower_order_nums: int = 0  # steps that count towards the order of the next one
    generator: torch.Tensor | None = None  # state of the CPU generator of a sampler that draws noise, uint8
    momentum: torch.Tensor | None = None  # running average of guider apg, float32 as x


def start(shape: tuple[int, ...], seed: int, device: torch.device, sampler: str = "unipc") -> State:
    """The state before the first step: standard normal noise of this shape.

    It is drawn on the CPU, so that a seed gives the same noise on every machine. A sampler that draws more noise goes on
    with the same generator.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float32).to(device)
    return State(step=0, x=x, generator=generator.get_state() if sampler in DRAWING else None)


def switch_step(scheduler: Scheduler, boundary_ratio: float) -> int:
    """Number of steps of the high-noise expert: those at timesteps >= boundary_ratio * 1000."""
    return int((scheduler.timesteps >= boundary_ratio * scheduler.config.num_train_timesteps).sum())


def concat_condition(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's input for the 14b: `x`, mask and image latents as channels [1, 16 + 4 + 16, T, h, w]; one timestep [1]."""
    return torch.cat([x, condition.mask, condition.image], dim=1), t.expand(len(x))


def inpaint_condition(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's input for the 5b: `x` with the known latents put in [1, 48, T, h, w]; a timestep per token
    [1, T * h/2 * w/2], which is 0 for known tokens."""
    noise_mask = 1 - condition.mask
    return apply_known(x, condition), (noise_mask[:, 0, :, ::2, ::2] * t).flatten(1)


def text_condition(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's input for the 14b-t2v, which knows the prompt alone: `x` [1, 16, T, h, w] and one timestep [1]."""
    return x, t.expand(len(x))


def apply_known(x: torch.Tensor, condition: Condition) -> torch.Tensor:
    """Replace `x` by the condition's image latents where the mask is 1."""
    noise_mask = 1 - condition.mask
    return (1 - noise_mask) * condition.image + noise_mask * x


MAKE_INPUT = {"14b": concat_condition, "14b-t2v": text_condition, "5b": inpaint_condition}  # by variant
BeginPass = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Prediction:
    """Makes passes of a model on one input, `hidden` and `timestep`, see `Predict`.

    `negative` returns the pass with the negative prompt, if it is made elsewhere.
    """

    model: torch.nn.Module
    hidden: torch.Tensor
    timestep: torch.Tensor
    condition: Condition
    negative: Callable[[], torch.Tensor] | None = None

    def __call__(self, *, negative: bool = False, skip: Sequence[int] = ()) -> torch.Tensor:
        if negative and self.negative:
            return self.negative()
        prompt = self.condition.negative if negative else self.condition.prompt
        with without_blocks(self.model, skip), cache_of(self.model, NEGATIVE if negative else PROMPT):
            return self.model(self.hidden, self.timestep, prompt, return_dict=False)[0]


@torch.no_grad()
def denoise(
    model: torch.nn.Module,
    state: State,
    scheduler: Scheduler,
    last: int,
    condition: Condition,
    make_input: Callable[[torch.Tensor, torch.Tensor, Condition], tuple[torch.Tensor, torch.Tensor]],
    guidance: Guidance,
    dtype: torch.dtype,
    after_step: Callable[[State], None] = lambda state: None,
    elsewhere: BeginPass | None = None,
) -> State:
    """Run the denoising steps from `state.step` up to, not including, `last`.

    Args:
        model: predicts the velocity, computing in `dtype`. Latents stay float32.
        make_input: makes the model's input from latents and condition: one of MAKE_INPUT.
        guidance: with a scale above 1 a guided step runs the model again, on the negative prompt. Each expert has a scale
            of its own; diffusers decides by the high-noise expert's scale whether any step is guided.
        after_step: called with the new state after each step.
        elsewhere: begins a pass of the same model on another device, of `hidden`, `timestep` and a prompt, and returns a
            function that waits for its prediction, on the device of `model`. It makes the passes on the negative prompt.

    Raises:
        ItemError: a prediction or the latents are not finite.
    """
    generator, steps = restore_state(scheduler, state), len(scheduler.timesteps)
    for step in range(state.step, last):
        t, at = scheduler.timesteps[step], f"step {step + 1} of {steps}"
        hidden, timestep = make_input(state.x, t, condition)
        hidden, negative = hidden.to(dtype), None
        if elsewhere and condition.negative is not None and guidance.is_guided(step, steps):
            negative = elsewhere(hidden, timestep, condition.negative)
        predict = Prediction(model, hidden, timestep, condition, negative)
        velocity, momentum = guidance.guide(predict, step, steps, state.x, state.momentum)
        check_finite(velocity, "the prediction", PRECISION_OR_GUIDANCE, at)
        x = take_step(scheduler, velocity, step, state.x, generator)
        check_finite(x, "latents", PRECISION_OR_GUIDANCE, at)
        state = capture_state(scheduler, generator, momentum, x, step + 1)
        after_step(state)
    return state


def capture_state(
    scheduler: Scheduler, generator: torch.Generator | None, momentum: torch.Tensor | None, x: torch.Tensor, step: int
) -> State:
    """The state after a step. The scheduler has no public accessor for it, hence the pinned version of diffusers."""
    history = ("model_outputs", "last_sample", "this_order", "lower_order_nums")  # of unipc; dpm++ has two, the others none
    found = {name: getattr(scheduler, name) for name in history if hasattr(scheduler, name)}
    found |= {"model_outputs": tuple(found.get("model_outputs", ()))}
    return State(step, x, **found, generator=None if generator is None else generator.get_state(), momentum=momentum)


def restore_state(scheduler: Scheduler, state: State) -> torch.Generator | None:
    """Set a scheduler to where it was after `state.step` steps. Returns the generator of a sampler that draws noise."""
    if state.step:
        scheduler._step_index = state.step
    if state.model_outputs:
        scheduler.model_outputs, scheduler.lower_order_nums = list(state.model_outputs), state.lower_order_nums
    if state.step and isinstance(scheduler, UniPCMultistepScheduler):
        before = range(state.step - len(state.model_outputs), state.step)
        scheduler.timestep_list = [scheduler.timesteps[step] if step >= 0 else None for step in before]
        scheduler.last_sample, scheduler.this_order = state.last_sample, state.this_order
    if state.generator is None:
        return None
    generator = torch.Generator("cpu")
    generator.set_state(state.generator)
    return generator
