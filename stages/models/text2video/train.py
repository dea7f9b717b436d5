"""Training of the 3D U-Net on clips with captions, by denoising diffusion (Ho et al. 2020, arXiv:2006.11239)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from stages.models.shared.clip import to_uint8
from stages.models.shared.loading import load_network, load_tokenizer, read_config
from stages.models.shared.text import embed
from stages.models.shared.training.data import datasets
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.training.text import left_out, new_text_encoder, words_in
from stages.models.text2video.options import NOISE_SCHEDULES
from stages.models.text2video.sampler import denoise
from stages.models.text2video.unet import UNet3D, inflate
from stages.runtime.errors import JobError, UsageError
from stages.runtime.log import log
from stages.runtime.model import Model

WEIGHT_LIMIT = 4.0  # of the clip's error at little noise, where it is predicted itself


class Text2VideoTask(Task):
    """The squared error of the noise, the velocity or the clip, at a timestep drawn evenly.

    What a clip shows and how it moves are hard to learn at once from noise. A first frame that is given shows the one, and
    leaves the other to the text.
    """

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options, self.data = options, datasets(options)
        start = Path(options["start_from"]) if options["start_from"] else None
        if start and not (start / "unet" / "config.json").is_file():
            raise UsageError(
                f"{start} has no unet/", "give --start-from a model of train text2video, or a 2D diffusion model"
            )
        flat = start and read_config(start / "unet").get("_class_name") == "UNet2DConditionModel"
        if start:
            self.tokenizer = load_tokenizer(start / "tokenizer")
            self.text = load_network(CLIPTextModel, start, "text_encoder", dtype=torch.float32)
        elif "text_encoder" in architecture:
            self.tokenizer, self.text = new_text_encoder(architecture["text_encoder"], words_in(self.data))
        else:
            self.tokenizer, self.text = published_text_encoder(options["text_encoder"])
        self.text.requires_grad_("text_encoder" in architecture or bool(start and options["train_text_encoder"]))
        if start and not flat:
            self.unet = load_network(UNet3D, start, "unet", dtype=torch.float32)
            self.unet.register_to_config(num_frames=options["num_frames"], sample_size=options["frame_size"])
        else:
            sizes = {name: options[name] for name in ("model_channels", "num_frames")}
            sizes |= {"sample_size": options["frame_size"], "text_dim": self.text.config.hidden_size}
            self.unet = UNet3D(**{**sizes, **architecture.get("unet", {})})
        if flat:
            source = load_network(UNet2DConditionModel, start, "unet", dtype=torch.float32)
            taken = inflate(self.unet, source.state_dict())
            log("inflated", taken=len(taken), of=len(self.unet.state_dict()))
        self._check_size()
        self.scheduler = DDPMScheduler(
            num_train_timesteps=options["num_timesteps"],
            beta_schedule=NOISE_SCHEDULES[options["noise_schedule"]],
            prediction_type=options["prediction_type"],
            clip_sample=True,
        )

    def _check_size(self) -> None:
        frames, side = self.unet.multiple
        for name, multiple in (("num_frames", frames), ("frame_size", side)):
            if self.options[name] % multiple:
                raise UsageError(f"{name} is {self.options[name]}", f"this architecture needs a multiple of {multiple}")

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        clip = batch["video"]  # [B, 3, T, H, W] in -1..1
        count = len(clip)
        timestep = torch.randint(self.options["num_timesteps"], (count,), generator=generator).to(clip.device)
        dropped = torch.rand(count, generator=generator) < self.options["text_dropout"]
        noise = torch.randn(clip.shape, generator=generator).to(clip)
        texts = left_out(batch["text"], dropped)
        noisy = self.scheduler.add_noise(clip, noise, timestep)
        asked = torch.ones_like(clip[:, :1])  # [B, 1, T, H, W], 0 where a first frame is given
        given = torch.rand(count, generator=generator) < self.options["first_frame_share"]
        asked[given, :, 0] = 0
        noisy = asked * noisy + (1 - asked) * clip
        made = self.unet(noisy, timestep, embed(self.tokenizer, self.text, texts))
        error = asked * (made - self._target(clip, noise, timestep)) ** 2
        if self.options["prediction_type"] == "sample":
            remaining = 1 - self.scheduler.alphas_cumprod.to(clip)[timestep]
            error = error * (1 / (remaining + 1e-4)).clamp(max=WEIGHT_LIMIT).view(-1, 1, 1, 1, 1)
        return error.sum() / (asked.sum() * clip.shape[1]).clamp(min=1)

    def _target(self, clip: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the network is to predict, [B, 3, T, H, W]."""
        kind = self.options["prediction_type"]
        if kind == "v_prediction":
            return self.scheduler.get_velocity(clip, noise, timestep)
        return noise if kind == "epsilon" else clip

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Clips made of the captions by DDIM, with guidance."""
        texts = batch["text"][:8]
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(batch["video"][: len(texts)].shape, generator=generator).to(batch["video"])
        text, negative = (embed(self.tokenizer, self.text, words) for words in (texts, [""] * len(texts)))
        settings = {"sampler": "ddim", "steps": self.options["sample_steps"], "guidance": self.options["sample_guidance"]}
        clips = denoise(self.unet, noise, text, negative, self.scheduler.config, generator=generator, **settings)
        return [(words, to_uint8(clip)) for words, clip in zip(texts, clips, strict=True)]

    def settings(self) -> dict[str, Any]:
        """Without frames and sizes, which are in the U-Net's config."""
        guidance = self.options["sample_guidance"]
        options = {"steps": self.options["sample_steps"], "sampler": "ddim", "guidance_scale": guidance}
        return {"family": "text2video", "options": options}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `unet`, `text_encoder`, `tokenizer` and `scheduler`."""
        for name, module in (("unet", self.unet), ("text_encoder", self.text)):
            in_dtype(module, dtype).save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "Text2Video",
            "unet": ["stages.models.text2video.unet", "UNet3D"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", type(self.tokenizer).__name__],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def published_text_encoder(name: str) -> tuple[PreTrainedTokenizerFast, CLIPTextModel]:
    """A CLIP text model by folder or Hub id, which has to be on this machine. Raises UsageError."""
    try:
        folder = Path(name) if Path(name).is_dir() else Model(name, family="", hub=name).folder()
        return load_tokenizer(folder), load_network(CLIPTextModel, folder, dtype=torch.float32)
    except (OSError, ValueError, JobError) as error:
        raise UsageError(
            f"the text encoder {name} is not on this machine",
            f"fetch it once: hf download {name}; or give a new one in the architecture of --config",
        ) from error
