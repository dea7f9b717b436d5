"""Denoising of a batch of clips by the U-Net, in half precision with float32 as a fallback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from stages.families.dynamicrafter.options import GenerateOptions
from stages.families.dynamicrafter.sampler import PARAMETERISATIONS, apply_guidance, denoise, schedule
from stages.families.dynamicrafter.unet import UNet
from stages.families.shared.loading import DTYPES, load_network, loading
from stages.runtime.errors import ItemError
from stages.runtime.model import Model
from stages.runtime.resident import RESIDENTS

LATENT_CHANNELS = 4


class Denoised(NamedTuple):
    """Latents float32 [1, 4, T, h, w] of a clip, and the calls of the U-Net that were repeated in float32."""

    latents: torch.Tensor
    redone: list[dict[str, Any]]


class Denoiser:
    """A model's U-Net in the precision `dtype`. Raises JobError if it cannot be loaded."""

    def __init__(self, model: Model, dtype: str, device: str):
        self.parameterisation, self.dtype, self.device = PARAMETERISATIONS[model.variant], DTYPES[dtype], device
        with loading(model):
            load = partial(load_network, UNet, model.folder(), "unet", device, dtype=self.dtype)
            self.unet = RESIDENTS.take(model, "unet", load, self.dtype).eval()

    def __call__(
        self,
        conditions: Sequence[Mapping[str, torch.Tensor]],
        seeds: Sequence[int],
        frames: int,
        options: GenerateOptions,
        after_step: Callable[[], object] = lambda: None,
    ) -> list[Denoised]:
        """Denoise the clips of `conditions` (the tensors of `encoded`, all of one size) as one batch.

        Each clip has its own noise generator, so that it is the same in any batch, to within rounding. If a prediction of
        the U-Net is not finite, the clips concerned are predicted again in float32. Raises ItemError if that is not finite
        either, naming the step and the prediction.
        """
        batch = {name: torch.cat([tensors[name] for tensors in conditions]).to(self.device) for name in conditions[0]}
        image_latents = batch["image_latents"].expand(-1, -1, frames, -1, -1)
        fs = torch.full((len(seeds),), options.frame_stride, device=self.device)
        noises = batch_noise(seeds, (1, LATENT_CHANNELS, *image_latents.shape[2:]))
        steps = schedule(self.parameterisation, options.num_inference_steps, options.eta)
        step_numbers = {step.timestep: number for number, step in enumerate(steps, 1)}
        redone: list[list[dict[str, Any]]] = [[] for _ in seeds]

        def call(x: torch.Tensor, timestep: int, prefix: str) -> torch.Tensor:
            text, image = batch[f"{prefix}prompt_embeds"], batch[f"{prefix}image_embeds"]
            inputs = torch.cat([x, image_latents], dim=1), torch.full_like(fs, timestep), text, image, fs
            prediction = self._predict(*inputs)
            bad = not_finite(prediction)
            if bad and self.dtype != torch.float32:
                prediction[bad] = self._in_float32(*(tensor[bad] for tensor in inputs))
                for row in bad:
                    redone[row].append({"step": step_numbers[timestep], "timestep": timestep, "call": f"{prefix}prompt"})
                bad = not_finite(prediction)
            if bad:
                raise ItemError(
                    f"the U-Net's prediction with the {prefix}prompt became NaN or infinite in float32, at step "
                    f"{step_numbers[timestep]} of {len(steps)} (timestep {timestep})",
                    "check the output of encode and the weights: a higher precision does not help",
                )
            return prediction

        def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
            with_prompt = call(x, timestep, "")
            if options.guidance_scale == 1:
                return with_prompt
            without = call(x, timestep, "negative_")
            return apply_guidance(with_prompt, without, options.guidance_scale, options.guidance_rescale)

        on_device = (noise.to(self.device) for noise in noises)
        latents = denoise(predict, next(on_device), self.parameterisation, steps, on_device, after_step)
        return [Denoised(z[None].cpu(), calls) for z, calls in zip(latents, redone, strict=True)]

    def _predict(self, x, timesteps, text, image, fs) -> torch.Tensor:
        prediction = self.unet(x.to(self.dtype), timesteps, text.to(self.dtype), image.to(self.dtype), fs)
        return prediction.float()

    def _in_float32(self, x, timesteps, text, image, fs) -> torch.Tensor:
        self.unet.float()
        try:
            return self.unet(x, timesteps, text.float(), image.float(), fs)
        finally:
            self.unet.to(self.dtype)


def not_finite(prediction: torch.Tensor) -> list[int]:
    """The rows of a batch [B, ...] that hold NaN or infinite numbers."""
    return (~torch.isfinite(prediction).flatten(1).all(dim=1)).nonzero().flatten().tolist()


def batch_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """The initial noise of a batch, then the noise of each step, float32 [B, *shape[1:]]; one CPU generator per clip."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    while True:
        yield torch.cat([torch.randn(shape, generator=generator) for generator in generators])
