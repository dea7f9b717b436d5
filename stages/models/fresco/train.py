"""Training of a Stable Diffusion 1.5 and a ControlNet for hard edges, together, on the frames of clips with captions.

Denoising diffusion (Ho et al. 2020, arXiv:2006.11239) on the latents of a VAE that stays as it is. The ControlNet
(arXiv:2302.05543) sees the hard edges of the frame itself; in a part of the frames it says nothing, since FRESCO also looks
at its source by the U-Net alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from stages.media.edges import canny
from stages.media.shapes.filmed import LOOKS
from stages.models.fresco.looks import TwoLooks
from stages.models.shared.clip import to_uint8
from stages.models.shared.loading import load_network, load_tokenizer
from stages.models.shared.picture_vae import decoded, encoded
from stages.models.shared.text import embed
from stages.models.shared.training.data import datasets
from stages.models.shared.training.encoded import Encoded
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.training.pictures import frozen_vae
from stages.models.shared.training.text import left_out, new_text_encoder, words_in
from stages.runtime.errors import UsageError

SHOWN = 8  # frames of a sample strip
CONTROLNET = "controlnet_canny"


class EdgesTask(Task):
    """The squared error of the noise, at a timestep drawn evenly."""

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        if options["num_frames"] != 1:
            raise UsageError(f"num_frames is {options['num_frames']} and this model makes pictures", "give --num-frames 1")
        clips = datasets(options, TwoLooks)
        self.vae = frozen_vae(options)
        if options["start_from"]:
            self._load(Path(options["start_from"]))
        else:
            self._begin(architecture, words_in(clips, LOOKS))
        self.controlnet = self._controlnet(architecture.get("controlnet", {}))
        for network in (self.text, self.unet):
            network.requires_grad_(not options["freeze_unet"])
        self.data = tuple(Encoded(part, self.encode, options["batch_size"]) for part in clips)

    def _load(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.text = load_network(CLIPTextModel, folder, "text_encoder", dtype=torch.float32)
        self.unet = load_network(UNet2DConditionModel, folder, "unet", dtype=torch.float32)
        self.scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")

    def _begin(self, architecture: Mapping[str, Any], words: list[str]) -> None:
        """Everything new, on the noise schedule of Stable Diffusion 1.5."""
        self.tokenizer, self.text = new_text_encoder(architecture["text_encoder"], words)
        sizes = {"cross_attention_dim": self.text.config.hidden_size, "sample_size": self.options["frame_size"] // 8}
        self.unet = UNet2DConditionModel(**sizes, **architecture["unet"])
        self.scheduler = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        )

    def _controlnet(self, config: Mapping[str, Any]) -> ControlNetModel:
        """That of `start_from`, where it has one; else one that begins as the U-Net's way down and says nothing."""
        start = self.options["start_from"]
        if start and (Path(start) / CONTROLNET).is_dir():
            return load_network(ControlNetModel, Path(start), CONTROLNET, dtype=torch.float32)
        return ControlNetModel.from_unet(self.unet, **config)

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents` [B, 4, h, w] of single frames [B, 3, 1, H, W], and `control`, their edges, uint8 [B, H, W]."""
        edges = np.stack([canny(to_uint8(clip)[0]) for clip in video])
        return {"latents": encoded(self.vae, video[:, :, 0]), "control": torch.from_numpy(edges)}

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]
        count = len(latents)
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)
        no_text, blind = (
            torch.rand(count, generator=generator) < self.options[name] for name in ("text_dropout", "control_dropout")
        )
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        timestep = timestep.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        texts = left_out(batch["text"], no_text)
        scale = (~blind).to(latents).view(-1, 1, 1, 1)
        return ((self._predict(noisy, timestep, self._text(texts), batch["control"], scale) - noise) ** 2).mean()

    def _predict(self, noisy, timestep, text, control, scale) -> torch.Tensor:
        """The noise [B, 4, h, w]; `scale`, of what the ControlNet says, is a number or [B, 1, 1, 1]."""
        shown = (control[:, None].to(noisy) / 255).expand(-1, 3, -1, -1)
        down, middle = self.controlnet(noisy, timestep, text, controlnet_cond=shown, return_dict=False)
        return self.unet(
            noisy,
            timestep,
            text,
            down_block_additional_residuals=[scale * part for part in down],
            mid_block_additional_residual=scale * middle,
            return_dict=False,
        )[0]

    def _text(self, texts: list[str]) -> torch.Tensor:
        return embed(self.tokenizer, self.text, texts)

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per caption the true frame, its edges, and what is made of the two."""
        true, control, texts = batch["latents"][:SHOWN], batch["control"][:SHOWN], batch["text"][:SHOWN]
        text, without = self._text(texts), self._text([""] * len(texts))
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(self.options["sample_steps"])
        x = torch.randn(true.shape, generator=torch.Generator().manual_seed(0)).to(true)
        for t in scheduler.timesteps:
            told, untold = (self._predict(x, t, words, control, 1.0) for words in (text, without))
            x = scheduler.step(untold + self.options["sample_guidance"] * (told - untold), t, x).prev_sample
        rows = []
        for caption, *latents, edges in zip(texts, true, x, control, strict=True):
            before, made = (to_uint8(next(decoded(self.vae, z[None, :, None])).transpose(0, 1)) for z in latents)
            drawn = edges.cpu().numpy()[..., None].repeat(3, axis=-1)
            rows.append((caption, np.stack([before[0], drawn, made[0]])))
        return rows

    def settings(self) -> dict[str, Any]:
        control, side = CONTROLNET.removeprefix("controlnet_"), self.options["frame_size"]
        options = {"controlnet_type": control, "guidance_scale": self.options["sample_guidance"]}
        return {"family": "fresco", "options": options, "recipe": {"size": f"{side}*{side}"}}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a whole repository in diffusers' layout, with the ControlNet beside the U-Net."""
        parts = {"vae": self.vae, "unet": self.unet, CONTROLNET: self.controlnet, "text_encoder": self.text}
        for name, network in parts.items():
            in_dtype(network, dtype).save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", type(self.tokenizer).__name__],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
