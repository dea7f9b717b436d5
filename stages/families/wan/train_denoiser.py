"""Training of a Wan denoiser (`WanTransformer3DModel`) and its text encoder on clips with captions, by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

from stages.families.shared.loading import load_network
from stages.families.shared.training.loop import in_dtype
from stages.families.shared.wan.repository import write_index
from stages.families.wan.options import DenoiserTrainingOptions
from stages.families.wan.training import FlowMatchingTask

INITIAL_GATE = 0.6  # of the residual branches; the library's initial values keep them almost closed


class DenoiserTask(FlowMatchingTask):
    """Trains all weights of the transformers, from random weights or from those of `start_from`."""

    options: DenoiserTrainingOptions

    @property
    def variant(self) -> str:
        return self.options.variant

    def make_experts(self, architecture: Mapping[str, Any]) -> list[WanTransformer3DModel]:
        if start := self.options.start_from:
            return self._experts_from(Path(start))
        return [self._new_expert(architecture["transformer"]) for _ in self.expert_names()]

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
        for name in self.expert_names():
            source = name if (start / name).is_dir() else "transformer"
            old = load_network(WanTransformer3DModel, start, source, dtype=torch.float32)
            new = self._new_expert({k: v for k, v in old.config.items() if k[0] != "_" and k != "in_channels"})
            weights = old.state_dict()
            wide = torch.zeros_like(new.patch_embedding.weight)
            wide[:, : old.config.in_channels] = weights["patch_embedding.weight"]
            new.load_state_dict({**weights, "patch_embedding.weight": wide})
            experts.append(new)
        return experts

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a complete repository in diffusers' layout."""
        self.save_around(folder, dtype)
        for name, expert in zip(self.expert_names(), self.experts, strict=True):
            in_dtype(expert, dtype).save_pretrained(folder / name)
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.options.sample_shift
        ).save_pretrained(folder / "scheduler")
        write_index(folder, self.options.variant, self.options.boundary_ratio)
