"""Training of low-rank matrices (LoRA) beside the frozen weights of a Wan model.

`LoraTask` trains them on clips with captions, by flow matching as all weights are trained.

`DistillationTask` makes a student of a few steps without guidance. The teacher is the model without LoRA, with guidance and
many steps. From the same noise it goes through latents x_k at the sigmas s_k at which the student will step. The student
learns to get from each to the next in one step of the Euler solver: it predicts the mean velocity of the teacher there,
(x_k - x_(k+1)) / (s_k - s_(k+1)), as in progressive distillation (Salimans & Ho 2022, arXiv:2202.00512) in one round.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from stages.families.shared.loading import DTYPES, load_network
from stages.families.shared.solvers import Scheduler, make_scheduler, wan_grid
from stages.families.shared.training.data import ClipDataset, collate
from stages.families.shared.training.encoded import CachedDataset
from stages.families.shared.training.lora import add_lora, loras_in, without_lora
from stages.families.shared.training.options import DTYPE_OF_PRECISION
from stages.families.shared.wan.names import original_layer
from stages.families.wan.options import LORA_FILES, AdapterTrainingOptions, DistillationOptions, LoraTrainingOptions, detect
from stages.families.wan.sampler import State
from stages.families.wan.training import FlowMatchingTask, WanTask
from stages.runtime.errors import UsageError
from stages.runtime.model import SETTINGS, read_settings, settings_in


class AdapterTask(WanTask):
    """A training of low-rank matrices beside the frozen experts of `start_from`."""

    options: AdapterTrainingOptions

    def __init__(self, options: AdapterTrainingOptions, architecture: Mapping[str, Any]):
        check_base(options.start_from)
        super().__init__(options, architecture)

    @property
    def variant(self) -> str:
        return detect(Path(self.options.start_from)) or ""

    def make_experts(self, architecture: Mapping[str, Any]) -> list[WanTransformer3DModel]:
        options, experts = self.options, []
        self.dtype = DTYPES[DTYPE_OF_PRECISION[options.mixed_precision]]
        for name in self.expert_names():
            expert = load_network(WanTransformer3DModel, Path(options.start_from), name, dtype=self.dtype)
            expert.requires_grad_(False)
            add_lora(expert.blocks, options.target_modules, options.rank, options.lora_alpha)
            if options.gradient_checkpointing:
                expert.enable_gradient_checkpointing()
            experts.append(expert)
        return experts

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model of `start_from`, of hard links where the file system has them, with a LoRA file per expert."""
        shutil.copytree(self.options.start_from, folder, copy_function=link, ignore=shutil.ignore_patterns(SETTINGS, ".*"))
        for expert, name in zip(self.experts, LORA_FILES.values(), strict=False):
            save_file(lora_tensors(expert, dtype), folder / name, {"format": "pt"})


def check_base(start: str) -> None:
    """Raise UsageError for a folder that is no Wan model to train a LoRA for."""
    if not start:
        raise UsageError("start_from is not given", "give --start-from, the folder of the model that the LoRA is for")
    if not detect(folder := Path(start)):
        raise UsageError(
            f"{start} is no Wan2.2 model in diffusers' layout", "give --start-from a folder with model_index.json"
        )
    settings = read_settings(path, None) if (path := settings_in(folder)) else {}
    if any(settings.get("options", {}).get(name) for name in LORA_FILES):
        raise UsageError(f"the model {start} has a LoRA", "give --start-from the model that this LoRA was trained for")


def link(source: str, target: str) -> None:
    """A hard link, or a copy on another file system."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def lora_tensors(expert: WanTransformer3DModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The low-rank matrices of a transformer, with the names of published LoRAs for Wan: Wan's own, as for ComfyUI."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, lora in loras_in(expert).items():
        name = f"diffusion_model.{original_layer(layer)}"
        matrices = {"lora_down.weight": lora.down, "lora_up.weight": lora.up, "alpha": torch.tensor(lora.alpha)}
        tensors |= {f"{name}.{kind}": matrix.detach().to("cpu", dtype).contiguous() for kind, matrix in matrices.items()}
    return tensors


class LoraTask(AdapterTask, FlowMatchingTask):
    """The loss of the denoiser's training."""

    options: LoraTrainingOptions


class DistillationTask(AdapterTask):
    """Squared error of the teacher's mean velocity between two points of its trajectory."""

    options: DistillationOptions

    def __init__(self, options: DistillationOptions, architecture: Mapping[str, Any]):
        if options.teacher_steps % options.num_inference_steps:
            raise UsageError(
                f"teacher_steps is {options.teacher_steps} and num_inference_steps {options.num_inference_steps}",
                "give a multiple of num_inference_steps, so that the teacher passes the sigmas of the student",
            )
        super().__init__(options, architecture)
        steps = self.last_steps(self.sample_scheduler(torch.device("cpu")))
        if 0 in steps or len({*steps}) < len(steps):
            raise UsageError(f"boundary_ratio is {options.boundary_ratio} and leaves an expert without a step", "lower it")
        training, validation = self.data
        self.data = (
            TrajectoryDataset(training, self.trajectories, options.seed + 1),
            TrajectoryDataset(validation, self.trajectories, 0),
        )

    def sample_scheduler(self, device: torch.device) -> Scheduler:
        """The scheduler of the student."""
        return make_scheduler({}, self.options.num_inference_steps, self.options.shift, device, sampler="euler")

    def teacher_scheduler(self, device: torch.device) -> Scheduler:
        """The scheduler of the teacher: UniPC at sigmas that include those of the student."""
        steps = self.options.teacher_steps
        return make_scheduler({}, steps, self.options.shift, device, sigmas=wan_grid(steps, "euler").tolist())

    @torch.no_grad()
    def trajectories(self, batch: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """What the teacher does from a clip's first frame and caption, or from the caption alone.

        `points` [B, n + 1, C, T, h, w] are its latents at the student's sigmas and at 0, `known` [B] is the number of
        latent frames that it knew, and `text` has the captions with their prefixes.
        """
        device = self.text.device
        latents = batch["latents"].to(device)
        count = len(latents)
        draw = torch.rand(2, count, generator=generator)
        texts = self.with_prefix(batch["text"], draw[0])
        prompt, negative = (self.embed(text).to(self.dtype) for text in (texts, [self.options.negative_prompt] * count))
        known = self.known_latents(draw[1] < self.options.first_frame_share, generator)
        condition = self.condition({**batch, "latents": latents}, known, prompt, negative)
        every = self.options.teacher_steps // self.options.num_inference_steps
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        points = [noise]

        def after_step(state: State) -> None:
            if state.step % every == 0:
                points.append(state.x)

        with without_lora(self.experts):
            self.solve(noise, self.teacher_scheduler(device), condition, self.options.guidance_scale, after_step)
        return {"points": torch.stack(points, dim=1), "known": known, "text": texts}

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        points, count = batch["points"], len(batch["points"])
        sigmas = self.sample_scheduler(points.device).sigmas.to(points)
        place = self._places(count, generator).to(points.device)
        now, rows = sigmas[place], torch.arange(count, device=points.device)
        x, following = points[rows, place], points[rows, place + 1]
        velocity = (x - following) / (now - sigmas[place + 1]).view(-1, 1, 1, 1, 1)
        return self.error(batch, x, now, velocity, self.embed(batch["text"]), batch["known"])

    def _places(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Steps of the student [count]. With two experts the first half are steps of the high-noise expert."""
        uniform = torch.rand(count, generator=generator)
        first, *second = self.last_steps(self.sample_scheduler(torch.device("cpu")))
        if not second:
            return (uniform * first).long()
        half = count // 2
        return torch.cat([uniform[:half] * first, first + uniform[half:] * (second[0] - first)]).long()


class TrajectoryDataset(CachedDataset):
    """The items of `clips` with what `trajectories` makes of each.

    Clips are taken one by one, so that a training can stop after any step, and a resumed one is exact.
    """

    def __init__(
        self,
        clips: ClipDataset,
        trajectories: Callable[[Mapping[str, Any], torch.Generator], Mapping[str, Any]],
        seed: int,
    ):
        super().__init__(clips)
        self.trajectories, self.seed = trajectories, seed

    def make(self, index: int) -> Mapping[int, dict[str, Any]]:
        item = self.clips[index]
        seeds = np.random.SeedSequence([self.seed, index]).generate_state(1)
        made = self.trajectories(collate([item]), torch.Generator().manual_seed(int(seeds[0])))
        own = {name: value[0].cpu() if isinstance(value, torch.Tensor) else value[0] for name, value in made.items()}
        return {index: {**item, **own}}
