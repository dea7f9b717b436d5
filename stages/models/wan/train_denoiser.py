"""Training of a Wan denoiser (`WanTransformer3DModel`) and its text encoder on clips with captions.

Flow matching (Lipman et al. 2022, arXiv:2210.02747) on the latents of a trained VAE: x_s = (1 - s) x + s n, the model
predicts the velocity n - x. As in Wan2.2, variant 5b has the first frame in the place of the noise, with timestep 0 for its
tokens, in a part of the batch (the rest is text to video); variant 14b has it as further channels, and two experts, one for
sigmas above the boundary and one for those below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch import nn

from stages.models.shared.loading import load_network
from stages.models.shared.training.data import datasets
from stages.models.shared.training.encoded import Encoded
from stages.models.shared.training.loop import in_dtype
from stages.models.shared.wan.repository import write_index
from stages.models.shared.wan.training import LatentTask
from stages.models.wan.sampler import Condition, State, concatenated, denoise, imposed, make_scheduler, replaced, switch_step
from stages.runtime.errors import UsageError

OPEN_GATES = 0.6  # of the residual branches at the start; torch's own values keep them almost closed
SPREAD = 1.2  # of the logit-normal distribution of the sigmas


class DenoiserTask(LatentTask):
    """The velocity's squared error, at sigmas drawn from a shifted logit-normal distribution."""

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__(options, architecture)
        self.two_experts = options["variant"] == "14b"
        if self.two_experts and options["batch_size"] < 2:
            raise UsageError(
                "batch_size is 1 and each expert of the 14b is trained on a half", "give --batch-size 2 or more"
            )
        if options["start_from"]:
            self.experts = nn.ModuleList(self._experts_from(Path(options["start_from"])))
        else:
            self.experts = nn.ModuleList(self._new_expert(architecture["transformer"]) for _ in self._expert_names())
        self.data = tuple(Encoded(clips, self.encode, options["batch_size"]) for clips in datasets(options))

    def _expert_names(self) -> tuple[str, ...]:
        return ("transformer", "transformer_2") if self.two_experts else ("transformer",)

    def _new_expert(self, config: Mapping[str, Any]) -> WanTransformer3DModel:
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
                block.scale_shift_table[:, [2, 5]] = OPEN_GATES
            expert.proj_out.weight.zero_()
            expert.proj_out.bias.zero_()
        return expert

    def _experts_from(self, start: Path) -> list[WanTransformer3DModel]:
        """The experts of a repository; of one with a single transformer both start as it, blind to the condition."""
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
        """The latents of videos; for the 14b also what it is told, `image` [B, C, T, h, w] and `known` [B, 4, T, h, w]."""
        found = super().encode(video)
        if self.two_experts:
            grey = torch.cat([video[:, :, :1], torch.zeros_like(video[:, :, 1:])], dim=2)
            found["image"] = super().encode(grey)["latents"]
            found["known"] = torch.zeros(len(video), 4, *found["latents"].shape[2:])
            found["known"][:, :, 0] = 1
        return found

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
            known = torch.zeros_like(latents[:, :1])  # [B, 1, T, h, w], 1 where the first frame is given
            known[:, :, 0] = (draw[1] < self.options["first_frame_share"]).view(-1, 1, 1, 1).to(latents)
            noisy = known * latents + (1 - known) * noisy
            time = (1 - known[:, 0, :, ::2, ::2]).flatten(1) * (1000 * sigma)[:, None]  # [B, tokens]
            error = (1 - known) * (self.experts[0](noisy, time, text, return_dict=False)[0] - velocity) ** 2
            return error.sum() / ((1 - known).sum() * latents.shape[1])
        hidden = torch.cat([noisy, batch["known"], batch["image"]], dim=1)
        half, loss = count // 2, 0.0
        for expert, part in zip(self.experts, (slice(half), slice(half, count)), strict=True):
            if part.stop == 0:  # a single clip, the rest of the validation's: the low-noise expert alone
                continue
            made = expert(hidden[part], 1000 * sigma[part], text[part], return_dict=False)[0]
            loss = loss + ((made - velocity[part]) ** 2).mean() / (2 if half else 1)
        return loss

    def _prompts(self, captions: list[str], drop: list[float], extend: list[float]) -> list[str]:
        """Captions, some left out, some with the prefix that recipe chain puts before them, as the numbers (0 to 1) say."""
        prefix, share = self.options["prefix"], self.options["prefix_share"]
        texts = [f"{prefix} {text}" if number < share else text for text, number in zip(captions, extend, strict=True)]
        return ["" if number < self.options["text_dropout"] else text for text, number in zip(texts, drop, strict=True)]

    def _sigmas(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Sigmas [count]; of two experts the first half are those of the high-noise one."""
        even = torch.sigmoid(SPREAD * torch.randn(count, generator=generator))
        if self.two_experts:  # each within its range, evenly: there are too few steps in either to prefer some
            boundary, half = self.options["boundary_ratio"], count // 2
            even = torch.rand(count, generator=generator)
            return torch.cat([boundary + (1 - boundary) * even[:half], boundary * even[half:]])
        shift = self.options["training_shift"]
        return shift * even / (1 + (shift - 1) * even)

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per caption the true clip and the one made from its first frame; of the 5b also the one made from text alone."""
        rows = []
        for i, caption in enumerate(batch["text"][:3]):
            rows.append((caption, self.pixels(batch["latents"][i : i + 1])))
            rows.append(("from its first frame", self.pixels(self.generate(batch, i, first_frame=True))))
            if not self.two_experts:
                rows.append(("from the text", self.pixels(self.generate(batch, i, first_frame=False))))
        return rows

    def generate(self, batch: Mapping[str, Any], i: int, first_frame: bool) -> torch.Tensor:
        """Latents [1, C, T, h, w] by the sampler that the stage uses, without guidance."""
        steps, device, true = self.options["sample_steps"], batch["latents"].device, batch["latents"][i : i + 1]
        scheduler = make_scheduler({}, steps, self.options["sample_shift"], device)
        if self.two_experts:
            image, known, join = batch["image"][i : i + 1], batch["known"][i : i + 1], concatenated
        else:
            image, join = true[:, :, :1], replaced
            known = torch.zeros_like(true[:, :1])
            known[:, :, 0] = float(first_frame)
        condition = Condition(image, known, self.embed(batch["text"][i : i + 1]), None)
        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(i)).to(device)
        state, end = State(0, noise), steps
        for expert, last in zip(self.experts, self._last_steps(scheduler, end), strict=True):
            state = denoise(expert, state, scheduler, last, condition, join, 1.0, torch.float32)
        return state.x if self.two_experts else imposed(state.x, condition)

    def _last_steps(self, scheduler, steps: int) -> tuple[int, ...]:
        if not self.two_experts:
            return (steps,)
        return switch_step(scheduler, self.options["boundary_ratio"]), steps

    # ------------------------------------------------------------------------------------------------------------ save

    def settings(self) -> dict[str, Any]:
        side = self.options["frame_size"]
        size = f"{side}*{side}"
        options = {
            "size": size,
            "frame_num": self.options["num_frames"],
            "steps": self.options["sample_steps"],
            "shift": self.options["sample_shift"],
            "max_sequence_length": self.options["max_sequence_length"],
        }
        options |= {"boundary_ratio": self.options["boundary_ratio"]} if self.two_experts else {}
        options |= {} if self.options["start_from"] else {"negative_prompt": ""}  # its words are new, upstream's unknown
        return {"family": "wan", "variant": self.options["variant"], "sizes": [size], "options": options}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a whole repository in diffusers' layout."""
        self.save_around(folder, dtype)
        for name, expert in zip(self._expert_names(), self.experts, strict=True):
            in_dtype(expert, dtype).save_pretrained(folder / name)
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.options["sample_shift"]
        ).save_pretrained(folder / "scheduler")
        write_index(folder, self.options["variant"], self.options["boundary_ratio"])
