"""What the trainings of a Wan denoiser have in common: its experts, their input, the error of a velocity, samples.

The first frame conditions the model as in Wan2.2. For a share of the clips, variant 5b replaces the noise of the first frame
by its latents, with timestep 0 for these tokens; the other clips are text to video. Variant 14b takes the first frame as
further channels, variant 14b-t2v takes none. Both have two experts: one for sigmas at or above the boundary, one for sigmas
below.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn

from stages.families.shared.guidance import plain_guidance
from stages.families.shared.solvers import Scheduler, make_scheduler
from stages.families.shared.training.data import ClipDataset, datasets
from stages.families.shared.training.encoded import EncodedDataset
from stages.families.shared.training.text import drop_texts
from stages.families.shared.wan.training import LatentTask
from stages.families.wan.options import FROM_TEXT, T2V, TWO_EXPERTS, ClipConditionOptions, FlowMatchingOptions
from stages.families.wan.sampler import (
    MAKE_INPUT,
    Condition,
    State,
    apply_known,
    denoise,
    switch_step,
)
from stages.runtime.errors import UsageError

LOGIT_STD = 1.2  # standard deviation of the logit-normal distribution of the sigmas


class WanTask(LatentTask):
    """A training of the transformers ("experts") of a variant."""

    options: ClipConditionOptions
    dtype = torch.float32  # of the experts

    def __init__(self, options: ClipConditionOptions, architecture: Mapping[str, Any]):
        super().__init__(options, architecture)
        self.two_experts = self.variant in TWO_EXPERTS
        if self.two_experts and options.batch_size < 2:
            raise UsageError(
                "batch_size is 1 and each of the two experts trains on half a batch", "give --batch-size 2 or more"
            )
        self.experts = nn.ModuleList(self.make_experts(architecture))
        training, validation = datasets(options)
        self.data: tuple[ClipDataset, ClipDataset] = (
            EncodedDataset(training, self.encode, options.batch_size),
            EncodedDataset(validation, self.encode, options.batch_size),
        )

    @property
    @abstractmethod
    def variant(self) -> str:
        """The variant that is trained: 5b, 14b or 14b-t2v."""

    @abstractmethod
    def make_experts(self, architecture: Mapping[str, Any]) -> list[WanTransformer3DModel]:
        """The transformers, in the order of `expert_names`."""

    @abstractmethod
    def sample_scheduler(self, device: torch.device) -> Scheduler:
        """The scheduler of the sample strips."""

    def expert_names(self) -> tuple[str, ...]:
        return ("transformer", "transformer_2") if self.two_experts else ("transformer",)

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents` of videos; for the 14b also its condition, `image` [B, C, T, h, w] and `mask` [B, 4, T, h, w]."""
        tensors = super().encode(video)
        if self.variant == "14b":
            first_then_grey = torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], dim=2)
            tensors["image"] = super().encode(first_then_grey)["latents"]
            tensors["mask"] = torch.zeros(len(video), 4, *tensors["latents"].shape[2:])
            tensors["mask"][:, :, 0] = 1
        return tensors

    def error(
        self,
        batch: Mapping[str, Any],
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        velocity: torch.Tensor,
        text: torch.Tensor,
        known: torch.Tensor,
    ) -> torch.Tensor:
        """The mean squared error of the prediction of `velocity` [B, C, T, h, w] at noisy latents with sigmas [B].

        The 5b gets the first `known` latent frames of the clips, int64 [B], which then have no part in the error.
        """
        latents, count, text = batch["latents"], len(noisy), text.to(self.dtype)
        if not self.two_experts:
            mask = known_mask(latents, known)
            noisy = mask * latents + (1 - mask) * noisy
            time = (1 - mask[:, 0, :, ::2, ::2]).flatten(1) * (1000 * sigma)[:, None]  # [B, tokens]
            prediction = self.experts[0](noisy.to(self.dtype), time, text, return_dict=False)[0]
            error = (1 - mask) * (prediction - velocity) ** 2
            return error.sum() / ((1 - mask).sum() * latents.shape[1])
        hidden = (noisy if self.variant == T2V else torch.cat([noisy, batch["mask"], batch["image"]], dim=1)).to(self.dtype)
        half, loss = count // 2, latents.new_zeros(())
        for expert, part in zip(self.experts, (slice(half), slice(half, count)), strict=True):
            if part.stop == 0:  # a batch of one clip, the last in validation, is for the low-noise expert alone
                continue
            prediction = expert(hidden[part], 1000 * sigma[part], text[part], return_dict=False)[0]
            loss = loss + ((prediction - velocity[part]) ** 2).mean() / (2 if half else 1)
        return loss

    def known_latents(self, given: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Numbers of known latent frames, int64 [B]: 0 where no frame is `given`, bool [B]."""
        most = self.options.most_known_latents
        if most == 1:
            return given.long()
        return given * torch.randint(1, most + 1, given.shape, generator=generator)

    def with_prefix(self, captions: list[str], draw: torch.Tensor) -> list[str]:
        """Put the prefix before some captions: those whose random numbers `draw` (0 to 1) are low."""
        prefix, chosen = self.options.prefix, draw < self.options.prefix_share
        return [f"{prefix} {text}" if extend else text for text, extend in zip(captions, chosen.tolist(), strict=True)]

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per caption: the true clip, and one from its first frame and one from the text, where the variant can."""
        rows = []
        for i, caption in enumerate(batch["text"][:3]):
            rows.append((caption, self.pixels(batch["latents"][i : i + 1])))
            if self.variant != T2V:
                rows.append(("from its first frame", self.pixels(self.sample_latents(batch, i, first_frame=True))))
            if self.variant in FROM_TEXT:
                rows.append(("from the text", self.pixels(self.sample_latents(batch, i, first_frame=False))))
        return rows

    def sample_latents(self, batch: Mapping[str, Any], i: int, first_frame: bool) -> torch.Tensor:
        """Sample latents [1, C, T, h, w] with the sampler of the stage, without guidance."""
        one = {name: values[i : i + 1] for name, values in batch.items()}
        true = one["latents"]
        condition = self.condition(one, torch.tensor([int(first_frame)]), self.embed(one["text"]).to(self.dtype))
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(i)).to(true.device)
        x = self.solve(noise, self.sample_scheduler(true.device), condition)
        return x if self.two_experts else apply_known(x, condition)

    def condition(
        self, batch: Mapping[str, Any], known: torch.Tensor, prompt: torch.Tensor, negative: torch.Tensor | None = None
    ) -> Condition:
        """The inputs of the experts for a batch, on the device of its latents. `known` is that of `error`."""
        latents = batch["latents"]
        if self.variant == "14b":
            return Condition(batch["image"].to(latents.device), batch["mask"].to(latents.device), prompt, negative)
        return Condition(latents, known_mask(latents, known), prompt, negative)

    def solve(
        self,
        noise: torch.Tensor,
        scheduler: Scheduler,
        condition: Condition,
        guidance_scale: float = 1.0,
        after_step: Callable[[State], None] = lambda state: None,
    ) -> torch.Tensor:
        """The latents that the experts make of noise, one after the other, as `generate` does."""
        make_input = MAKE_INPUT[self.variant]
        state, guidance = State(0, noise), plain_guidance(guidance_scale)
        for expert, last in zip(self.experts, self.last_steps(scheduler), strict=True):
            state = denoise(expert, state, scheduler, last, condition, make_input, guidance, self.dtype, after_step)
        return state.x

    def last_steps(self, scheduler: Scheduler) -> tuple[int, ...]:
        """For each expert, the step at which it stops."""
        steps = len(scheduler.timesteps)
        if not self.two_experts:
            return (steps,)
        return switch_step(scheduler, self.options.boundary_ratio), steps


def known_mask(latents: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """1 in the first `known` latent frames of a clip, else 0, [B, 1, T, h, w]; of latents [B, C, T, h, w], `known` [B]."""
    frames = torch.arange(latents.shape[2], device=latents.device)
    given = frames < known.to(latents.device)[:, None]  # [B, T]
    return given[:, None, :, None, None].to(latents).expand_as(latents[:, :1]).clone()


class FlowMatchingTask(WanTask):
    """Squared error of the velocity, at sigmas drawn from a shifted logit-normal distribution.

    This is flow matching (Lipman et al. 2022, arXiv:2210.02747) on the latents of a trained VAE: x_s = (1 - s) x + s n, and
    the model predicts the velocity n - x.
    """

    options: FlowMatchingOptions

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]  # [B, C, T, h, w], normalised
        count = len(latents)
        draw = torch.rand(3, count, generator=generator)
        text = self.embed(drop_texts(self.with_prefix(batch["text"], draw[2]), draw[0] < self.options.text_dropout))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        sigma = self.sigmas(count, generator).to(latents)
        velocity = noise - latents
        noisy = latents + sigma.view(-1, 1, 1, 1, 1) * velocity
        known = self.known_latents(draw[1] < self.options.first_frame_share, generator)
        return self.error(batch, noisy, sigma, velocity, text, known)

    def sigmas(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Sigmas [count]. With two experts the first half are for the high-noise expert, the rest for the low-noise one."""
        sigma = torch.sigmoid(LOGIT_STD * torch.randn(count, generator=generator))
        if self.two_experts:  # uniform within each expert's range: too few sampling steps fall in either to prefer some
            boundary, half = self.options.boundary_ratio, count // 2
            uniform = torch.rand(count, generator=generator)
            return torch.cat([boundary + (1 - boundary) * uniform[:half], boundary * uniform[half:]])
        shift = self.options.training_shift
        return shift * sigma / (1 + (shift - 1) * sigma)

    def sample_scheduler(self, device: torch.device) -> Scheduler:
        """The scheduler of the sample strips."""
        return make_scheduler({}, self.options.sample_steps, self.options.sample_shift, device)
