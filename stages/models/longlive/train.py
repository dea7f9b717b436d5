"""Training of a causal Wan on clips whose prompt changes on the way: flow matching, teacher-forced (see `forcing`).

The clean frames carry a little noise, as made ones carry faults, so that these don't grow. In a part of the clips all clean
frames are told the second prompt, as after a switch that goes over the window once more; the blocks before it then don't
count.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from torch.utils.data import Dataset

from stages.media.shapes import world
from stages.models.longlive.cache import Cache
from stages.models.longlive.causal import CausalWan
from stages.models.longlive.forcing import Forcing
from stages.models.longlive.options import LONGEST
from stages.models.longlive.sampler import Schedule, denoise, prefill
from stages.models.shared.loading import load_network
from stages.models.shared.training.data import ShapesDataset, datasets
from stages.models.shared.training.encoded import Encoded
from stages.models.shared.training.loop import in_dtype
from stages.models.shared.wan.repository import write_index
from stages.models.shared.wan.training import LatentTask
from stages.runtime.errors import UsageError

SHOWN = 3  # clips of a sample strip


class CausalTask(LatentTask):
    """The velocity's squared error, each block at a sigma of its own."""

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__(options, architecture)
        frames, block = (options["num_frames"] - 1) // 4 + 1, options["num_frame_per_block"]
        if frames % block or frames <= block:
            raise UsageError(
                f"num_frames is {options['num_frames']}, that is {frames} latent frames",
                f"it takes two blocks of {block} or more, for example {4 * (2 * block - 1) + 1}",
            )
        if options["start_from"]:
            start = Path(options["start_from"])
            self.transformer = load_network(
                WanTransformer3DModel, start, "transformer", rope_max_seq_len=LONGEST, dtype=torch.float32
            )
        else:
            channels = self.vae.config.z_dim
            size = {"in_channels": channels, "out_channels": channels, "text_dim": self.text.config.d_model}
            self.transformer = WanTransformer3DModel(**size, **architecture["transformer"])
        self.forcing = Forcing(self.transformer, frames, options["local_attn_size"], options["sink_size"], block)
        clips = datasets(options, partial(TurningShapes, block=block))
        self.data = tuple(Encoded(Switched(part), self.encode, options["batch_size"]) for part in clips)

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]  # [B, C, F, h, w], normalised
        count, frames, block = len(latents), latents.shape[2], self.options["num_frame_per_block"]
        text = torch.stack([self.embed(batch["text"]), self.embed(batch["text2"])], dim=1)  # [B, 2, L, D]
        after = torch.arange(frames) >= torch.tensor(batch["switch"])[:, None]  # [B, F]
        again = torch.rand(count, 1, generator=generator) < self.options["recache_share"]
        told = torch.cat([after | again, after], dim=1).long().to(latents.device)
        counts = (after | ~again).to(latents)[:, None, :, None, None]

        even = torch.rand(count, frames // block, generator=generator)
        shift = self.options["training_shift"]
        sigma = (shift * even / (1 + (shift - 1) * even)).repeat_interleave(block, dim=1).to(latents)  # [B, F]
        noise, fault = (torch.randn(latents.shape, generator=generator).to(latents) for _ in range(2))
        velocity = noise - latents
        noisy = latents + sigma[:, None, :, None, None] * velocity
        strength = self.options["context_fault"] * torch.rand(count, 1, 1, 1, 1, generator=generator).to(latents)
        made = self.forcing(latents + strength * fault, noisy, sigma, text, told)
        return (counts * (made - velocity) ** 2).sum() / (counts.sum() * latents[0, :, 0].numel())

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per clip the true one, and the one whose frames from the switch on are made."""
        model = CausalWan(in_dtype(self.transformer, torch.float32).to(batch["latents"].device).eval())
        rows = []
        for i in range(min(SHOWN, len(batch["text"]))):
            rows.append((batch["text"][i], self.pixels(batch["latents"][i : i + 1])))
            rows.append((batch["text2"][i], self.pixels(self.generate(model, batch, i))))
        return rows

    def generate(self, model: CausalWan, batch: Mapping[str, Any], i: int) -> torch.Tensor:
        """Latents [1, C, F, h, w] of a clip from its switch on, by the sampler that the stage uses."""
        latents, block = batch["latents"][i : i + 1], self.options["num_frame_per_block"]
        schedule = Schedule.of((1000, 750, 500, 250), shift=5.0, warp=True, context_noise=0.0)
        cache = Cache(self.options["local_attn_size"], self.options["sink_size"])
        made = latents[:, :, : batch["switch"][i]]
        prefill(model, cache, made, self.embed([batch["text"][i]]), schedule, block)
        cache.forget_prompt()
        text, generator = self.embed([batch["text2"][i]]), torch.Generator().manual_seed(i)
        while made.shape[2] < latents.shape[2]:
            start = made.shape[2]
            shape = (len(schedule.sigmas), *latents[:, :, :block].shape)
            first, *fresh = torch.randn(shape, generator=generator).to(latents)
            made = torch.cat([made, denoise(model, cache, first, fresh, text, schedule, start)], dim=2)
        return made

    # ------------------------------------------------------------------------------------------------------------ save

    def settings(self) -> dict[str, Any]:
        side = self.options["frame_size"]
        size = f"{side}*{side}"
        passed_on = ("num_frame_per_block", "local_attn_size", "sink_size", "max_sequence_length")
        options = {"size": size, "num_output_frames": (self.options["num_frames"] - 1) // 4 + 1}
        options |= {name: self.options[name] for name in passed_on}
        return {"family": "longlive", "sizes": [size], "options": options}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a whole repository in diffusers' layout, that of Wan2.1 text to video."""
        self.save_around(folder, dtype)
        in_dtype(self.transformer, dtype).save_pretrained(folder / "transformer")
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0).save_pretrained(
            folder / "scheduler"
        )
        write_index(folder, "")


class TurningShapes(ShapesDataset):
    """Clips of shapes world whose shape turns, at the beginning of a block: `switch`, in latent frames, from which on
    `text2` is true and `text` no more. The new direction may be the old one."""

    def __init__(self, *args: Any, block: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.block = block

    def clip(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        scene, side = self.scene(index, rng), self.frame_size
        blocks = ((self.num_frames - 1) // 4 + 1) // self.block
        switch = self.block * int(rng.integers(1, blocks))
        turn = 4 * (switch - 1)  # the last frame that the first scene has
        onward = world.turned(scene, list(world.DIRECTIONS)[rng.integers(len(world.DIRECTIONS))], turn, side, side)
        frames = np.concatenate(
            [
                world.render(scene, turn + 1, side, side),
                world.render(onward, self.num_frames - turn - 1, side, side, start=1),
            ]
        )
        return {"frames": frames, "text": scene.caption(), "text2": onward.caption(), "switch": switch}


class Switched(Dataset):
    """Clips that all have a second prompt; those of a folder keep theirs to the end."""

    def __init__(self, clips: Dataset):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key) -> dict[str, Any]:
        item = self.clips[key]
        return {"text2": item["text"], "switch": 0, **item}
