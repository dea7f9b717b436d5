"""Guidance by name: the predictions with the prompt, the negative prompt and fewer blocks become one.

`scale` is w, `cond` and `uncond` are the velocities with the prompt and with the negative prompt:

- cfg: uncond + w (cond - uncond), classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).
- apg: cond + (w - 1) (o + eta p), adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416). p is the part of
  cond - uncond along cond and o the rest, after its norm was limited and the guidance of earlier steps added.
- cfg_zero_star: a uncond + w (cond - a uncond) with a = <cond, uncond> / |uncond|^2, and 0 in the first steps, CFG-Zero*
  (Fan et al. 2025, arXiv:2503.18886).

Skip-layer guidance adds s (cond - weak), where weak is the prediction of a transformer without some of its blocks
(https://github.com/Stability-AI/sd3.5).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale

from stages.families.shared.flow_options import GuidanceOptions, in_interval


class Predict(Protocol):
    """The velocity of a step, with the prompt or the negative prompt, by a model without the blocks `skip`."""

    def __call__(self, *, negative: bool = False, skip: Sequence[int] = ()) -> torch.Tensor: ...


@dataclass(frozen=True)
class Guidance:
    """How the steps of a schedule are guided: the scale of the expert, which is off up to 1, and the options."""

    scale: float
    options: GuidanceOptions

    def guide(
        self, predict: Predict, step: int, steps: int, x: torch.Tensor, momentum: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The guided velocity of a step, counted from 0, and the running average of apg after it.

        Args:
            predict: makes a pass of the model.
            x: the latents, float32, whose shape is that of a velocity.
            momentum: the running average of apg before the step, float32; None before its first.
        """
        options = self.options
        if self._is_left_out(step):
            return torch.zeros_like(x), momentum
        cond = velocity = predict()
        if self.is_guided(step, steps):
            velocity, momentum = self._combined(cond, predict(negative=True), momentum)
        if options.skip_layers and in_interval(step, steps, options.skip_layer_interval):
            velocity = velocity + options.skip_layer_scale * (cond - predict(skip=options.skip_layers))
        return velocity, momentum

    def is_guided(self, step: int, steps: int) -> bool:
        """Whether a step, counted from 0, has a pass with the negative prompt."""
        in_guidance = in_interval(step, steps, self.options.guidance_interval)
        return self.scale > 1 and in_guidance and not self._is_left_out(step)

    def _is_left_out(self, step: int) -> bool:
        return self.options.guider == "cfg_zero_star" and step < self.options.zero_init_steps

    def _combined(
        self, cond: torch.Tensor, uncond: torch.Tensor, momentum: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The guided velocity and the running average of apg. cfg computes in the precision of the model, as diffusers."""
        options = self.options
        if options.guider == "cfg":
            return uncond + self.scale * (cond - uncond), None
        cond, uncond = cond.float(), uncond.float()
        if options.guider == "cfg_zero_star":
            fitted = cfg_zero_star_scale(cond.flatten(1), uncond.flatten(1)).view(-1, *[1] * (cond.ndim - 1)) * uncond
            return fitted + self.scale * (cond - fitted), None
        buffer = MomentumBuffer(options.apg_momentum) if options.apg_momentum else None
        if buffer and momentum is not None:
            buffer.running_average = momentum
        guided = normalized_guidance(
            cond,
            uncond,
            self.scale - 1,
            buffer,
            options.apg_eta,
            options.apg_norm_threshold,
            use_original_formulation=True,  # from cond on, as in the paper; else eta 0 would lose a part of cond
        )
        return guided, buffer and buffer.running_average


def plain_guidance(scale: float) -> Guidance:
    """Classifier-free guidance in all steps; none up to a scale of 1."""
    return Guidance(scale, GuidanceOptions.resolved({}))


@contextmanager
def without_blocks(transformer: torch.nn.Module, skip: Sequence[int]) -> Iterator[None]:
    """In the context the blocks `skip` of a transformer return their input.

    They still compute, unlike with diffusers' LayerSkipConfig: the hooks of offload rely on each block being called.
    """
    with ExitStack() as stack:
        for number in skip:
            block = cast(torch.nn.ModuleList, transformer.blocks)[number]
            handle = block.register_forward_hook(lambda block, inputs, output: inputs[0])
            stack.callback(handle.remove)
        yield
