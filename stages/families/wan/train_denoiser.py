"""Training of a Wan denoiser (`WanTransformer3DModel`) and its text encoder on clips with captions.

The loss is flow matching (Lipman et al. 2022, arXiv:2210.02747) on the latents of a trained VAE: x_s = (1 - s) x + s n, and
the model predicts the velocity n - x.

The first frame conditions the model as in Wan2.2. For a share of the clips, variant 5b replaces the noise of the first frame
by its latents, with timestep 0 for these tokens; the other clips train text to video. Variant 14b takes the first frame as
further channels, and has two experts: one for sigmas at or above the boundary, one for sigmas below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch import nn

from stages.families.shared.flow_options import GuidanceOptions
from stages.families.shared.guidance import Guidance
from stages.families.shared.loading import load_network
from stages.families.shared.solvers import Scheduler, make_scheduler
from stages.families.shared.training.data import datasets
from stages.families.shared.training.encoded import EncodedDataset
from stages.families.shared.training.loop import in_dtype
from stages.families.shared.wan.repository import write_index
from stages.families.shared.wan.training import LatentTask
from stages.families.wan.options import DenoiserTrainingOptions
from stages.families.wan.sampler import (
    Condition,
    State,
    apply_known,
    concat_condition,
    denoise,
    inpaint_condition,
    switch_step,
)
from stages.runtime.errors import UsageError

INITIAL_GATE = 0.6  # of the residual branches; the library's initial values keep them almost closed
LOGIT_STD = 1.2  # standard deviation of the logit-normal distribution of the sigmas


class DenoiserTask(LatentTask):
    """Squared error of the velocity, at sigmas drawn from a shifted logit-normal distribution."""

    options: DenoiserTrainingOptions

    def __init__(self, options: DenoiserTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__(options, architecture)
        self.two_experts = options.variant == "14b"
        if self.two_experts and options.batch_size < 2:
            raise UsageError(
                "batch_size is 1 and each expert of the 14b trains on half a batch", "give --batch-size 2 or more"
            )
        if options.start_from:
            self.experts = nn.ModuleList(self._experts_from(Path(options.start_from)))
        else:
            self.experts = nn.ModuleList(self._new_expert(architecture["transformer"]) for _ in self._expert_names())
        training, validation = datasets(options)
        self.data = (
            EncodedDataset(training, self.encode, options.batch_size),
            EncodedDataset(validation, self.encode, options.batch_size),
        )

    def _expert_names(self) -> tuple[str, ...]:
        return ("transformer", "transformer_2") if self.two_experts else ("transformer",)

    def _new_expert(self, config: Mapping[str, Any]) -> WanTransformer3DModel:
        """A transformer of random weights that predicts a velocity of 0 at first."""
        channels = self.vae.config.z_dim
        condition = 4 + channels if self.two_experts else 0
        expert = WanTransformer3DModel(
            **{
                "in_channels": channels + condition,
                "out_channels": channels,
                "text_dim": self.text.config.d_model,
                **config,
            }
        )
        with torch.no_grad():
            for block in expert.blocks:
                block.scale_shift_table[:, [2, 5]] = INITIAL_GATE
            expert.proj_out.weight.zero_()
            expert.proj_out.bias.zero_()
        return expert

    def _experts_from(self, start: Path) -> list[WanTransformer3DModel]:
        """The experts of a repository. If it has one transformer, both start from it and at first ignore the condition."""
        experts = []
        for name in self._expert_names():
            source = name if (start / name).is_dir() else "transformer"
            old = load_network(WanTransformer3DModel, start, source, dtype=torch.float32)
            new = self._new_expert({k: v for k, v in old.config.items() if k[0] != "_" and k != "in_channels"})
            weights = old.state_dict()
            wide = torch.zeros_like(new.patch_embedding.weight)
            wide[:, : old.config.in_channels] = weights["patch_embedding.weight"]
            new.load_state_dict({**weights, "patch_embedding.weight": wide})
            experts.append(new)
        return experts

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents` of videos; for the 14b also its condition, `image` [B, C, T, h, w] and `mask` [B, 4, T, h, w]."""
        tensors = super().encode(video)
        if self.two_experts:
            first_then_grey = torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], dim=2)
            tensors["image"] = super().encode(first_then_grey)["latents"]
            tensors["mask"] = torch.zeros(len(video), 4, *tensors["latents"].shape[2:])
            tensors["mask"][:, :, 0] = 1
        return tensors

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]  # [B, C, T, h, w], normalised
        count = len(latents)
        draw = torch.rand(3, count, generator=generator)
        text = self.embed(self._prompts(batch["text"], *draw[[0, 2]].tolist()))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        sigma = self._sigmas(count, generator).to(latents)
        velocity = noise - latents
        noisy = latents + sigma.view(-1, 1, 1, 1, 1) * velocity
        if not self.two_experts:
            mask = torch.zeros_like(latents[:, :1])  # [B, 1, T, h, w], 1 where the first frame is given
            mask[:, :, 0] = (draw[1] < self.options.first_frame_share).view(-1, 1, 1, 1).to(latents)
            noisy = mask * latents + (1 - mask) * noisy
            time = (1 - mask[:, 0, :, ::2, ::2]).flatten(1) * (1000 * sigma)[:, None]  # [B, tokens]
            error = (1 - mask) * (self.experts[0](noisy, time, text, return_dict=False)[0] - velocity) ** 2
            return error.sum() / ((1 - mask).sum() * latents.shape[1])
        hidden = torch.cat([noisy, batch["mask"], batch["image"]], dim=1)
        half, loss = count // 2, latents.new_zeros(())
        for expert, part in zip(self.experts, (slice(half), slice(half, count)), strict=True):
            if part.stop == 0:  # a batch of one clip, the last in validation, is for the low-noise expert alone
                continue
            prediction = expert(hidden[part], 1000 * sigma[part], text[part], return_dict=False)[0]
            loss = loss + ((prediction - velocity[part]) ** 2).mean() / (2 if half else 1)
        return loss

    def _prompts(self, captions: list[str], drop: list[float], extend: list[float]) -> list[str]:
        """Replace some captions by "", and put the prefix before some: those whose random numbers (0 to 1) are low."""
        prefix, share = self.options.prefix, self.options.prefix_share
        texts = [f"{prefix} {text}" if draw < share else text for text, draw in zip(captions, extend, strict=True)]
        return ["" if draw < self.options.text_dropout else text for text, draw in zip(texts, drop, strict=True)]

    def _sigmas(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Sigmas [count]. With two experts the first half are for the high-noise expert, the rest for the low-noise one."""
        sigma = torch.sigmoid(LOGIT_STD * torch.randn(count, generator=generator))
        if self.two_experts:  # uniform within each expert's range: too few sampling steps fall in either to prefer some
            boundary, half = self.options.boundary_ratio, count // 2
            uniform = torch.rand(count, generator=generator)
            return torch.cat([boundary + (1 - boundary) * uniform[:half], boundary * uniform[half:]])
        shift = self.options.training_shift
        return shift * sigma / (1 + (shift - 1) * sigma)

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per caption: the true clip, a clip generated from its first frame, and for the 5b one generated from the text."""
        rows = []
        for i, caption in enumerate(batch["text"][:3]):
            rows.append((caption, self.pixels(batch["latents"][i : i + 1])))
            rows.append(("from its first frame", self.pixels(self.sample_latents(batch, i, first_frame=True))))
            if not self.two_experts:
                rows.append(("from the text", self.pixels(self.sample_latents(batch, i, first_frame=False))))
        return rows

    def sample_latents(self, batch: Mapping[str, Any], i: int, first_frame: bool) -> torch.Tensor:
        """Sample latents [1, C, T, h, w] with the sampler of the stage, without guidance."""
        steps, device, true = self.options.sample_steps, batch["latents"].device, batch["latents"][i : i + 1]
        scheduler = make_scheduler({}, steps, self.options.sample_shift, device)
        if self.two_experts:
            image, mask, make_input = batch["image"][i : i + 1], batch["mask"][i : i + 1], concat_condition
        else:
            image, make_input = true[:, :, :1], inpaint_condition
            mask = torch.zeros_like(true[:, :1])
            mask[:, :, 0] = float(first_frame)
        condition = Condition(image, mask, self.embed(batch["text"][i : i + 1]), None)
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(i)).to(device)
        state, end, unguided = State(0, noise), steps, Guidance(1.0, GuidanceOptions.resolved({}))
        for expert, last in zip(self.experts, self._last_steps(scheduler, end), strict=True):
            state = denoise(expert, state, scheduler, last, condition, make_input, unguided, torch.float32)
        return state.x if self.two_experts else apply_known(state.x, condition)

    def _last_steps(self, scheduler: Scheduler, steps: int) -> tuple[int, ...]:
        """For each expert, the step at which it stops."""
        if not self.two_experts:
            return (steps,)
        return switch_step(scheduler, self.options.boundary_ratio), steps

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a complete repository in diffusers' layout."""
        self.save_around(folder, dtype)
        for name, expert in zip(self._expert_names(), self.experts, strict=True):
            in_dtype(expert, dtype).save_pretrained(folder / name)
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.options.sample_shift
        ).save_pretrained(folder / "scheduler")
        write_index(folder, self.options.variant, self.options.boundary_ratio)
