"""Sampling for FRESCO (arXiv:2403.12962): keyframes are denoised from the source in batches that share anchor frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor

from stages.families.fresco.attention import Guidance
from stages.families.fresco.correspondence import MASK_SCALES, TRAJECTORY_SCALES, token_masks, trajectories
from stages.families.fresco.features import Motion, Reference, optimise, unit_tokens
from stages.families.fresco.smoothing import Background
from stages.runtime import memory

ANCHORS = 2  # frames that a batch shares with the one before: the first keyframe and the last one denoised
GRAM_SHARE = 1 / 4  # of the free memory that Gram matrices of the source may fill, per up block


@dataclass(frozen=True)
class Batch:
    """The source of N keyframes: latents float32 [N, 4, h, w], control maps float32 [N, 3, H, W] in 0..1, images float32
    [N, 3, H, W] in -1..1, the flow between them and, where there are masks, their background."""

    latents: torch.Tensor
    control: torch.Tensor
    images: torch.Tensor
    motion: Motion
    background: Background | None = None


@dataclass(frozen=True)
class Settings:
    """The sampler's settings; the family's options of `generate` describe them."""

    steps: int
    warmup: int
    optimised_steps: int
    guidance_scale: float
    cond_scale: float
    temporal_end: int
    iterations: int
    rate: float
    gram_weight: float
    matmul_precision: str
    smoothed_steps: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Models:
    """The networks, and the guidance that the U-Net's attention processors follow."""

    unet: UNet2DConditionModel
    controlnet: ControlNetModel
    scheduler: DDPMScheduler
    guidance: Guidance

    def predict_noise(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, residuals=None) -> torch.Tensor:
        """The noise in x [N, 4, h, w], without and with the prompt: float32 [2 N, 4, h, w].

        `text` [2 N, L, D] has the embeddings of the negative prompt first. `residuals` are those of the ControlNet.
        """
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
    anchors: list[torch.Tensor],
    after_step: Callable[[], object],
) -> torch.Tensor:
    """Latents float32 [N, 4, h, w] of a batch in the new style; `text` [2, L, D].

    `anchors` holds the latents [2, 4, h, w] of the anchor frames before each step. This batch takes them from the batch
    before, and leaves those of its own first and last frame. The noise depends on the seed alone, and is the same for every
    batch and every frame, at the start and at each step. The published program draws the noise of each step for each frame,
    and its videos flicker.
    """
    frames, device = len(batch.latents), batch.latents.device
    models.scheduler.set_timesteps(settings.steps)
    timesteps = models.scheduler.timesteps
    generators = [torch.Generator("cpu").manual_seed(settings.seed) for _ in batch.latents]
    noise = randn_tensor(batch.latents.shape, generators, device)
    first = max(settings.warmup, 0)
    x = noise if settings.warmup < 0 else models.scheduler.add_noise(batch.latents, noise, timesteps[first].expand(frames))
    text = text.repeat_interleave(frames, dim=0)
    set_guidance(models.guidance, batch)
    with hook_up_blocks(models.unet) as hooks:
        tokens = collect_reference(models, batch, text, noise, hooks)
        references = [make_reference(of_level, settings) for of_level in tokens]
        for step, t in enumerate(timesteps[first:]):
            models.guidance.spatial = step == 0
            models.guidance.temporal = bool(t >= settings.temporal_end)
            if step < len(anchors):
                x = torch.cat([anchors[step], x[ANCHORS:]])
                anchors[step] = x[[0, -1]]
            else:
                anchors.append(x[[0, -1]])
            hooks.transform = None
            if first + step < settings.optimised_steps and settings.iterations:
                hooks.transform = lambda features, level: optimise_features(features, references[level], batch, settings)
            residuals = controlnet_residuals(models, x, t, text, batch.control, settings.cond_scale)
            without, with_prompt = models.predict_noise(x, t, text, residuals).chunk(2)
            predicted = without + settings.guidance_scale * (with_prompt - without)
            if batch.background and first + step in settings.smoothed_steps:
                predicted = smooth_background(batch.background, x, predicted, models.scheduler.alphas_cumprod[t])
            x = models.scheduler.step(predicted, t, x, generator=generators, return_dict=False)[0]
            after_step()
    return x


def make_reference(tokens: torch.Tensor, settings: Settings) -> Reference:
    """The reference of an up block, of unit tokens [2 N, P, C], in the free memory of their device."""
    on_gpu = tokens.device.type == "cuda"
    free = memory.gpu_memory(str(tokens.device)) if on_gpu else memory.main_memory()
    with float32_products(settings.matmul_precision):
        return Reference(tokens, GRAM_SHARE * free)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Multiply float32 matrices in this precision within the block: highest, or high, which allows TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def optimise_features(features: torch.Tensor, reference: Reference, batch: Batch, settings: Settings) -> torch.Tensor:
    """Optimise features [2 N, C, h, w] for the flow and the Gram matrices of `reference`, then blend their background."""
    with float32_products(settings.matmul_precision):
        features = optimise(features, reference, batch.motion, settings.iterations, settings.rate, settings.gram_weight)
    return batch.background.blend_features(features) if batch.background else features


def smooth_background(background: Background, x: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The noise in x [N, 4, h, w] for which the predicted images share one background; `alpha` is alphas_cumprod[t]."""
    latents = background.blend_latents((x - (1 - alpha).sqrt() * noise) / alpha.sqrt())
    return (x - alpha.sqrt() * latents) / (1 - alpha).sqrt()


def set_guidance(guidance: Guidance, batch: Batch) -> None:
    """Set the masks and trajectories of a batch; the pair from its last frame to its first takes no part in them."""
    backward, occlusions = batch.motion.backward[:-1], batch.motion.occluded_backward[:-1]
    guidance.frames, guidance.reference = len(batch.latents), {}
    masks = [token_masks(occlusions, scale) for scale in MASK_SCALES]
    paths = [trajectories(backward, occlusions, batch.images, scale) for scale in TRAJECTORY_SCALES]
    guidance.masks = {mask.shape[1]: mask for mask in masks}
    guidance.paths = {path.forward.shape[1]: path for path in paths}


def collect_reference(
    models: Models, batch: Batch, text: torch.Tensor, noise: torch.Tensor, hooks: Hooks
) -> list[torch.Tensor]:
    """Run the U-Net on the source at the last timestep, and keep what it computes there.

    Fills the guidance's `reference`. Returns the unit tokens of the input of each up block, [2 N, P, C].
    """
    guidance, t = models.guidance, models.scheduler.timesteps[-1]
    references: list[torch.Tensor] = []

    def store(features: torch.Tensor, level: int) -> torch.Tensor:
        references.append(unit_tokens(features.float()))
        return features

    guidance.cross_frame = guidance.spatial = guidance.temporal = False
    guidance.collect, hooks.transform = True, store
    models.predict_noise(models.scheduler.add_noise(batch.latents, noise, t.expand(len(noise))), t, text)
    guidance.collect, guidance.cross_frame = False, True
    return references


def controlnet_residuals(
    models: Models, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, control: torch.Tensor, scale: float
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The ControlNet's residuals for the U-Net's down blocks and for its mid block."""
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
class Hooks:
    """`transform(features, level)` replaces the input of each up block; None leaves it unchanged."""

    transform: Callable[[torch.Tensor, int], torch.Tensor] | None = None


@contextmanager
def hook_up_blocks(unet: UNet2DConditionModel) -> Iterator[Hooks]:
    """Hooks on the inputs of a U-Net's up blocks, removed at the end."""
    hooks = Hooks()

    def make_hook(level: int) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, dict[str, Any]] | None]:
        def hook(block, args, kwargs):
            if hooks.transform is None:
                return None
            return args, {**kwargs, "hidden_states": hooks.transform(kwargs["hidden_states"], level)}

        return hook

    blocks = enumerate(unet.up_blocks)
    handles = [block.register_forward_pre_hook(make_hook(level), with_kwargs=True) for level, block in blocks]
    try:
        yield hooks
    finally:
        for handle in handles:
            handle.remove()


def batch_motion(
    batch: Sequence[int], pairs: Sequence[Sequence[int]], tensors: Mapping[str, torch.Tensor], device: str
) -> Motion:
    """The flow around a batch of keyframes, selected from that of all `pairs` of keyframes in `encoded`."""
    row_of = {tuple(pair): row for row, pair in enumerate(pairs)}
    rows = [row_of[pair] for pair in zip(batch, [*batch[1:], batch[0]])]
    names = ("flow_forward", "flow_backward", "occluded_forward", "occluded_backward")
    return Motion(*(tensors[name][rows].to(device).float() for name in names))
