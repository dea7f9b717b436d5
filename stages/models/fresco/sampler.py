"""Keyframes by denoising from the source, batch after batch, each led by what the last one made (arXiv:2403.12962)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor

from stages.models.fresco.attention import Guidance
from stages.models.fresco.correspondence import MASK_SCALES, TRAJECTORY_SCALES, token_masks, trajectories
from stages.models.fresco.features import Motion, directions, optimised
from stages.models.fresco.smoothing import Background

ANCHORS = 2  # the first frames of a later batch, which are known


@dataclass(frozen=True)
class Batch:
    """What is known of N keyframes: latents float32 [N, 4, h, w] of the source, control maps float32 [N, 3, H, W] in 0..1,
    images float32 [N, 3, H, W] in -1..1, how they move, and, where there are masks, their background."""

    latents: torch.Tensor
    control: torch.Tensor
    images: torch.Tensor
    motion: Motion
    background: Background | None = None


@dataclass(frozen=True)
class Settings:
    """Of a run, see the options of the family."""

    steps: int
    warmup: int
    optimised_steps: int
    guidance_scale: float
    cond_scale: float
    temporal_end: int
    iterations: int
    rate: float
    gram_weight: float
    smoothed_steps: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Models:
    """The networks, and what the attentions of the U-Net are told."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    scheduler: DDPMScheduler
    guidance: Guidance

    def predicted(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, residuals=None) -> torch.Tensor:
        """What the U-Net says of x [N, 4, h, w] in both halves, [2 N, 4, h, w]; `text` [2 N, L, D], without prompt first."""
        down, middle = residuals or (None, None)
        return self.unet(
            x.repeat(2, 1, 1, 1).to(self.unet.dtype),
            t,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0].float()


def translate(
    models: Models,
    batch: Batch,
    text: torch.Tensor,
    settings: Settings,
    known: list[torch.Tensor],
    after_step: Callable[[], None],
) -> torch.Tensor:
    """Latents float32 [N, 4, h, w] of a batch in the new look; `text` [2, L, D].

    `known` holds the anchors' latents [2, 4, h, w] before each step: those of the batch before lead this one, and are
    replaced by this one's first and last. Noise is that of the seed, begun anew for each batch, and the same for all frames:
    what they start from, and that of each step, which the published program draws for each frame, so that its films flicker.
    """
    frames, device = len(batch.latents), batch.latents.device
    models.scheduler.set_timesteps(settings.steps)
    timesteps = models.scheduler.timesteps
    generators = [torch.Generator("cpu").manual_seed(settings.seed) for _ in batch.latents]
    noise = randn_tensor(batch.latents.shape, generators, device)
    first = max(settings.warmup, 0)
    x = noise if settings.warmup < 0 else models.scheduler.add_noise(batch.latents, noise, timesteps[first].expand(frames))
    text = text.repeat_interleave(frames, dim=0)
    guide(models.guidance, batch)
    with tapped(models.unet) as taps:
        references = look_at_source(models, batch, text, noise, taps)
        for step, t in enumerate(timesteps[first:]):
            models.guidance.spatial = step == 0
            models.guidance.temporal = bool(t >= settings.temporal_end)
            if step < len(known):
                x = torch.cat([known[step], x[ANCHORS:]])
                known[step] = x[[0, -1]]
            else:
                known.append(x[[0, -1]])
            taps.change = None
            if first + step < settings.optimised_steps and settings.iterations:
                taps.change = lambda features, level: led(features, references[level], batch, settings)
            residuals = controlled(models, x, t, text, batch.control, settings.cond_scale)
            without, with_prompt = models.predicted(x, t, text, residuals).chunk(2)
            predicted = without + settings.guidance_scale * (with_prompt - without)
            if batch.background and first + step in settings.smoothed_steps:
                predicted = smoothed(batch.background, x, predicted, models.scheduler.alphas_cumprod[t])
            x = models.scheduler.step(predicted, t, x, generator=generators, return_dict=False)[0]
            after_step()
    return x


def led(features: torch.Tensor, reference: torch.Tensor, batch: Batch, settings: Settings) -> torch.Tensor:
    """Features [2 N, C, h, w] that follow the flow, in the background to the point."""
    features = optimised(features, reference, batch.motion, settings.iterations, settings.rate, settings.gram_weight)
    return batch.background.of_features(features) if batch.background else features


def smoothed(background: Background, x: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The noise in x [N, 4, h, w] when the pictures behind it have one background; `alpha` is their part in x, squared."""
    latents = background.of_latents((x - (1 - alpha).sqrt() * noise) / alpha.sqrt())
    return (x - alpha.sqrt() * latents) / (1 - alpha).sqrt()


def guide(guidance: Guidance, batch: Batch) -> None:
    """Tell the attentions what a batch shows; the pair from the last frame to the first has no part in that."""
    backward, occlusions = batch.motion.backward[:-1], batch.motion.occluded_backward[:-1]
    guidance.frames, guidance.reference = len(batch.latents), {}
    masks = [token_masks(occlusions, scale) for scale in MASK_SCALES]
    paths = [trajectories(backward, occlusions, batch.images, scale) for scale in TRAJECTORY_SCALES]
    guidance.masks = {mask.shape[1]: mask for mask in masks}
    guidance.paths = {path.forward.shape[1]: path for path in paths}


def look_at_source(models: Models, batch: Batch, text: torch.Tensor, noise: torch.Tensor, taps: Taps) -> list[torch.Tensor]:
    """Let the U-Net see the source with the least noise: fills the guidance's reference, and returns the directions of what
    enters each up block, [2 N, P, C]."""
    guidance, t, seen = models.guidance, models.scheduler.timesteps[-1], []

    def look(features: torch.Tensor, level: int) -> torch.Tensor:
        seen.append(directions(features.float()))
        return features

    guidance.cross_frame = guidance.spatial = guidance.temporal = False
    guidance.collect, taps.change = True, look
    models.predicted(models.scheduler.add_noise(batch.latents, noise, t.expand(len(noise))), t, text)
    guidance.collect, guidance.cross_frame = False, True
    return seen


def controlled(models: Models, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, control: torch.Tensor, scale: float):
    """What the ControlNet adds to the U-Net: to its way down, and in its middle."""
    dtype = models.unet.dtype
    return models.controlnet(
        x.repeat(2, 1, 1, 1).to(dtype),
        t,
        text,
        controlnet_cond=control.repeat(2, 1, 1, 1).to(dtype),
        conditioning_scale=scale,
        return_dict=False,
    )


@dataclass
class Taps:
    """What enters the up blocks is replaced by what `change` makes of it, told at which block."""

    change: Callable[[torch.Tensor, int], torch.Tensor] | None = None


@contextmanager
def tapped(unet: UNet2DConditionModel):
    """Taps at the up blocks of a U-Net."""
    taps = Taps()

    def tap(level: int):
        def hook(block, arguments, named):
            if taps.change is None:
                return None
            return arguments, {**named, "hidden_states": taps.change(named["hidden_states"], level)}

        return hook

    hooks = [block.register_forward_pre_hook(tap(level), with_kwargs=True) for level, block in enumerate(unet.up_blocks)]
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def motion_of(batch: Sequence[int], pairs: Sequence[Sequence[int]], tensors, device) -> Motion:
    """The flow around the ring of a batch, out of that of all `pairs` of keyframes."""
    wanted = [list(map(tuple, pairs)).index(pair) for pair in zip(batch, [*batch[1:], batch[0]])]
    names = ("flow_forward", "flow_backward", "occluded_forward", "occluded_backward")
    return Motion(*(tensors[name][wanted].to(device).float() for name in names))
