"""The U-Net at work: clips of one batch from noise to latents, in half precision as far as that holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from stages.models.dynamicrafter.sampler import PARAMETERISATIONS, denoise, guided, schedule
from stages.models.dynamicrafter.unet import UNet
from stages.models.shared.loading import DTYPES, load_network, loading
from stages.runtime.errors import ItemError
from stages.runtime.model import Model

LATENT_CHANNELS = 4


class Made(NamedTuple):
    """Latents float32 [1, 4, T, h, w] of a clip, and the calls of the U-Net for it that were made again in float32."""

    latents: torch.Tensor
    redone: list[dict[str, Any]]


class Denoiser:
    """A model's U-Net in the precision `dtype`. Raises JobError where it cannot be loaded."""

    def __init__(self, model: Model, dtype: str, device: str):
        self.parameterisation, self.dtype, self.device = PARAMETERISATIONS[model.variant], DTYPES[dtype], device
        with loading(model):
            self.unet = load_network(UNet, model.folder(), "unet", dtype=self.dtype)
        self.unet.to(device).eval()

    def __call__(
        self,
        conditions: Sequence[Mapping[str, torch.Tensor]],
        seeds: Sequence[int],
        frames: int,
        options: Mapping[str, Any],
        after_step: Callable[[], None] = lambda: None,
    ) -> list[Made]:
        """The clips of `conditions` (the tensors of `encoded`, of one size each), made together.

        Each has its noise from a generator of its own, so that a clip is the same in any batch, to within rounding. A call
        of the U-Net whose result is not finite is made again in float32, for the clips that it concerns. Raises ItemError
        where that does not help, naming the step and the prediction.
        """
        told = {name: torch.cat([tensors[name] for tensors in conditions]).to(self.device) for name in conditions[0]}
        picture = told["image_latents"].expand(-1, -1, frames, -1, -1)
        fs = torch.full((len(seeds),), options["frame_stride"], device=self.device)
        noises = batch_noise(seeds, (1, LATENT_CHANNELS, *picture.shape[2:]))
        steps = schedule(self.parameterisation, options["num_inference_steps"], options["eta"])
        at = {step.timestep: number for number, step in enumerate(steps, 1)}
        redone: list[list[dict[str, Any]]] = [[] for _ in seeds]

        def call(x: torch.Tensor, timestep: int, prefix: str) -> torch.Tensor:
            text, image = told[f"{prefix}prompt_embeds"], told[f"{prefix}image_embeds"]
            given = torch.cat([x, picture], dim=1), torch.full_like(fs, timestep), text, image, fs
            made = self._predict(*given)
            bad = not_finite(made)
            if bad and self.dtype != torch.float32:
                made[bad] = self._in_float32(*(tensor[bad] for tensor in given))
                for row in bad:
                    redone[row].append({"step": at[timestep], "timestep": timestep, "call": f"{prefix}prompt"})
                bad = not_finite(made)
            if bad:
                raise ItemError(
                    f"the U-Net's prediction with the {prefix}prompt became NaN or infinite in float32, at step "
                    f"{at[timestep]} of {len(steps)} (timestep {timestep})",
                    "look at what encode wrote and at the weights: no precision mends that",
                )
            return made

        def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
            with_prompt = call(x, timestep, "")
            if options["guidance_scale"] == 1:
                return with_prompt
            without = call(x, timestep, "negative_")
            return guided(with_prompt, without, options["guidance_scale"], options["guidance_rescale"])

        on_device = (noise.to(self.device) for noise in noises)
        latents = denoise(predict, next(on_device), self.parameterisation, steps, on_device, after_step)
        return [Made(z[None].cpu(), calls) for z, calls in zip(latents, redone, strict=True)]

    def _predict(self, x, timesteps, text, image, fs) -> torch.Tensor:
        made = self.unet(x.to(self.dtype), timesteps, text.to(self.dtype), image.to(self.dtype), fs)
        return made.float()

    def _in_float32(self, x, timesteps, text, image, fs) -> torch.Tensor:
        self.unet.float()
        try:
            return self.unet(x, timesteps, text.float(), image.float(), fs)
        finally:
            self.unet.to(self.dtype)


def not_finite(made: torch.Tensor) -> list[int]:
    """Which clips of a batch [B, ...] have NaN or infinite numbers."""
    return (~torch.isfinite(made).flatten(1).all(dim=1)).nonzero().flatten().tolist()


def batch_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """What the clips start from, then what is added after their steps, float32 [B, *shape[1:]]: a generator per clip, on the
    CPU."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    while True:
        yield torch.cat([torch.randn(shape, generator=generator) for generator in generators])
