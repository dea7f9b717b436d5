"""Training of a causal Wan on clips whose prompt changes midway: flow matching with teacher forcing (see `forcing`).

A little noise on the clean frames stands for the errors of generated frames, so that the model learns not to amplify them.
In a share of the clips all clean frames attend to the second prompt, as after a switch that recomputes the window. The loss
then leaves out the blocks before the switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel

from stages.families.longlive.cache import Cache
from stages.families.longlive.causal import CausalWan
from stages.families.longlive.forcing import TeacherForcing
from stages.families.longlive.options import LONGEST, CausalTrainingOptions
from stages.families.longlive.sampler import Schedule, denoise, prefill, update_cache
from stages.families.shared.loading import load_network
from stages.families.shared.training.data import ShapesDataset, WithSecondPrompt, datasets
from stages.families.shared.training.encoded import EncodedDataset
from stages.families.shared.training.loop import in_dtype
from stages.families.shared.wan.repository import write_index
from stages.families.shared.wan.training import LatentTask
from stages.media.shapes import world
from stages.runtime.errors import UsageError

SAMPLE_CLIPS = 3  # clips in a sample strip


class CausalTask(LatentTask):
    """Squared error of the velocity, with a sigma drawn for each block."""

    options: CausalTrainingOptions

    def __init__(self, options: CausalTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__(options, architecture)
        frames, block = (options.num_frames - 1) // 4 + 1, options.num_frame_per_block
        if frames % block or frames <= block:
            raise UsageError(
                f"num_frames is {options.num_frames}, that is {frames} latent frames",
                f"take whole blocks of {block}, two or more: for example {4 * (2 * block - 1) + 1} frames",
            )
        if options.start_from:
            start = Path(options.start_from)
            self.transformer = load_network(
                WanTransformer3DModel, start, "transformer", rope_max_seq_len=LONGEST, dtype=torch.float32
            )
        else:
            channels = self.vae.config.z_dim
            size = {"in_channels": channels, "out_channels": channels, "text_dim": self.text.config.d_model}
            self.transformer = WanTransformer3DModel(**size, **architecture["transformer"])
        self.forcing = TeacherForcing(self.transformer, frames, options.local_attn_size, options.sink_size, block)
        training, validation = datasets(options, partial(TurningShapes, block=block))
        self.data = (
            EncodedDataset(WithSecondPrompt(training, switch=0), self.encode, options.batch_size),
            EncodedDataset(WithSecondPrompt(validation, switch=0), self.encode, options.batch_size),
        )

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]  # [B, C, F, h, w], normalised
        count, frames, block = len(latents), latents.shape[2], self.options.num_frame_per_block
        text = torch.stack([self.embed(batch["text"]), self.embed(batch["text2"])], dim=1)  # [B, 2, L, D]
        after = torch.arange(frames) >= torch.tensor(batch["switch"])[:, None]  # [B, F]
        recached = torch.rand(count, 1, generator=generator) < self.options.recache_share
        prompt_index = torch.cat([after | recached, after], dim=1).long().to(latents.device)
        loss_mask = (after | ~recached).to(latents)[:, None, :, None, None]

        uniform = torch.rand(count, frames // block, generator=generator)
        shift = self.options.training_shift
        sigma = (shift * uniform / (1 + (shift - 1) * uniform)).repeat_interleave(block, dim=1).to(latents)  # [B, F]
        noise, fault = (torch.randn(latents.shape, generator=generator).to(latents) for _ in range(2))
        velocity = noise - latents
        noisy = latents + sigma[:, None, :, None, None] * velocity
        strength = self.options.context_fault * torch.rand(count, 1, 1, 1, 1, generator=generator).to(latents)
        prediction = self.forcing(latents + strength * fault, noisy, sigma, text, prompt_index)
        return (loss_mask * (prediction - velocity) ** 2).sum() / (loss_mask.sum() * latents[0, :, 0].numel())

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per clip: the true clip, and one whose frames from the switch on are generated."""
        model = CausalWan(in_dtype(self.transformer, torch.float32).to(batch["latents"].device).eval())
        rows = []
        for i in range(min(SAMPLE_CLIPS, len(batch["text"]))):
            rows.append((batch["text"][i], self.pixels(batch["latents"][i : i + 1])))
            rows.append((batch["text2"][i], self.pixels(self.sample_latents(model, batch, i))))
        return rows

    def sample_latents(self, model: CausalWan, batch: Mapping[str, Any], i: int) -> torch.Tensor:
        """Continue a clip from its switch on with the sampler of the stage: latents [1, C, F, h, w]."""
        latents, block = batch["latents"][i : i + 1], self.options.num_frame_per_block
        schedule = Schedule.of((1000, 750, 500, 250), shift=5.0, warp=True, context_noise=0.0)
        cache = Cache(self.options.local_attn_size, self.options.sink_size)
        film = latents[:, :, : batch["switch"][i]]
        prefill(model, cache, film, self.embed([batch["text"][i]]), schedule, block)
        cache.clear_cross_attention()
        text, generator = self.embed([batch["text2"][i]]), torch.Generator().manual_seed(i)
        while film.shape[2] < latents.shape[2]:
            start = film.shape[2]
            shape = (len(schedule.sigmas), *latents[:, :, :block].shape)
            noise, *step_noise = torch.randn(shape, generator=generator).to(latents)
            clean = denoise(model, cache, noise, step_noise, text, schedule, start)
            update_cache(model, cache, clean, text, schedule, start)
            film = torch.cat([film, clean], dim=2)
        return film

    # ------------------------------------------------------------------------------------------------------------ save

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a complete repository in diffusers' layout, as of Wan2.1 text to video."""
        self.save_around(folder, dtype)
        in_dtype(self.transformer, dtype).save_pretrained(folder / "transformer")
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0).save_pretrained(
            folder / "scheduler"
        )
        write_index(folder, "")


class TurningShapes(ShapesDataset):
    """Clips of shapes world whose shape changes its direction at the start of a block.

    An item also holds `switch`, the latent frame of the turn, and `text2`, the caption from there on; `text` is the caption
    before it. The new direction may equal the old one.
    """

    def __init__(self, *args: Any, block: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.block = block

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        scene, side = self.scene(index, rng), self.frame_size
        blocks = ((self.num_frames - 1) // 4 + 1) // self.block
        switch = self.block * int(rng.integers(1, blocks))
        turn = 4 * (switch - 1)  # last frame of the first scene
        onward = world.turn(scene, list(world.DIRECTIONS)[rng.integers(len(world.DIRECTIONS))], turn, side, side)
        frames = np.concatenate(
            [
                world.render(scene, turn + 1, side, side),
                world.render(onward, self.num_frames - turn - 1, side, side, start=1),
            ]
        )
        return {"frames": frames, "text": scene.caption(), "text2": onward.caption(), "switch": switch}
