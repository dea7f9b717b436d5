"""Joint training of Stable Diffusion 1.5 and a ControlNet for hard edges, on the frames of captioned clips.

Denoising diffusion (Ho et al. 2020, arXiv:2006.11239) on the latents of a frozen VAE. The ControlNet (arXiv:2302.05543) is
conditioned on the hard edges of the frame. It is switched off for a share of the frames, because FRESCO also runs the U-Net
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from stages.families.fresco.looks import TwoLooks
from stages.families.fresco.options import ControlNetTrainingOptions
from stages.families.shared.clip_text import embed
from stages.families.shared.loading import load_network, load_tokenizer
from stages.families.shared.model_index import write_index
from stages.families.shared.pixels import to_uint8
from stages.families.shared.sd_vae import decode_frames, encode_images
from stages.families.shared.training.data import datasets
from stages.families.shared.training.encoded import EncodedDataset
from stages.families.shared.training.images import load_frozen_vae
from stages.families.shared.training.loop import Task, in_dtype
from stages.families.shared.training.text import drop_texts, new_text_encoder, words_in
from stages.media.edges import canny
from stages.media.shapes.filmed import LOOKS
from stages.runtime.errors import UsageError

SAMPLES = 8  # frames in a sample strip
CONTROLNET = "controlnet_canny"


class EdgesTask(Task):
    """Mean squared error of the predicted noise, at uniformly drawn timesteps."""

    def __init__(self, options: ControlNetTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        if options.num_frames != 1:
            raise UsageError(f"num_frames is {options.num_frames} and the model generates images", "give --num-frames 1")
        clips = datasets(options, TwoLooks)
        self.vae = load_frozen_vae(options.vae or options.start_from)
        if options.start_from:
            self._load(Path(options.start_from))
        else:
            self._initialise(architecture, words_in(clips, LOOKS))
        self.controlnet = self._controlnet(architecture.get("controlnet", {}))
        for network in (self.text, self.unet):
            network.requires_grad_(not options.freeze_unet)
        train, validation = (EncodedDataset(part, self.encode, options.batch_size) for part in clips)
        self.data = train, validation

    def _load(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.text = load_network(CLIPTextModel, folder, "text_encoder", dtype=torch.float32)
        self.unet = load_network(UNet2DConditionModel, folder, "unet", dtype=torch.float32)
        self.scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")

    def _initialise(self, architecture: Mapping[str, Any], words: list[str]) -> None:
        """New networks, with the noise schedule of Stable Diffusion 1.5."""
        self.tokenizer, self.text = new_text_encoder(architecture["text_encoder"], words)
        sizes = {"cross_attention_dim": self.text.config.hidden_size, "sample_size": self.options.frame_size // 8}
        self.unet = UNet2DConditionModel(**sizes, **architecture["unet"])
        self.scheduler = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        )

    def _controlnet(self, config: Mapping[str, Any]) -> ControlNetModel:
        """The ControlNet of `start_from` if it has one, else a copy of the U-Net's down blocks with zero output."""
        start = self.options.start_from
        if start and (Path(start) / CONTROLNET).is_dir():
            return load_network(ControlNetModel, Path(start), CONTROLNET, dtype=torch.float32)
        return ControlNetModel.from_unet(self.unet, **config)

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents` [B, 4, h, w] of single frames [B, 3, 1, H, W], and `control`, their hard edges, uint8 [B, H, W]."""
        edges = np.stack([canny(to_uint8(clip)[0]) for clip in video])
        return {"latents": encode_images(self.vae, video[:, :, 0]), "control": torch.from_numpy(edges)}

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]
        count = len(latents)
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (count,), generator=generator)
        no_text, no_control = (
            torch.rand(count, generator=generator) < getattr(self.options, name)
            for name in ("text_dropout", "control_dropout")
        )
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        timestep = timestep.to(latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timestep)
        texts = drop_texts(batch["text"], no_text)
        scale = (~no_control).to(latents).view(-1, 1, 1, 1)
        return ((self._predict(noisy, timestep, self._text(texts), batch["control"], scale) - noise) ** 2).mean()

    def _predict(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        control: torch.Tensor,
        scale: torch.Tensor | float,
    ) -> torch.Tensor:
        """The predicted noise [B, 4, h, w]; `scale`, of the ControlNet's residuals, is a number or [B, 1, 1, 1]."""
        edges = (control[:, None].to(noisy) / 255).expand(-1, 3, -1, -1)
        down, middle = self.controlnet(noisy, timestep, text, controlnet_cond=edges, return_dict=False)
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
        """For each caption: the original frame, its edges, and the generated frame."""
        true, control, texts = batch["latents"][:SAMPLES], batch["control"][:SAMPLES], batch["text"][:SAMPLES]
        text, empty_text = self._text(texts), self._text([""] * len(texts))
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(self.options.sample_steps)
        x = torch.randn(true.shape, generator=torch.Generator().manual_seed(0)).to(true)
        for t in scheduler.timesteps:
            with_text, without = (self._predict(x, t, prompt, control, 1.0) for prompt in (text, empty_text))
            x = scheduler.step(without + self.options.sample_guidance * (with_text - without), t, x).prev_sample
        rows = []
        for caption, *latents, edges in zip(texts, true, x, control, strict=True):
            original, generated = (to_uint8(next(decode_frames(self.vae, z[None, :, None]))[0]) for z in latents)
            drawn = edges.cpu().numpy()[..., None].repeat(3, axis=-1)
            rows.append((caption, np.stack([original, drawn, generated])))
        return rows

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a complete repository in diffusers' layout, including the ControlNet."""
        networks = {"vae": self.vae, "unet": self.unet, CONTROLNET: self.controlnet, "text_encoder": self.text}
        for name, network in networks.items():
            copy: Any = in_dtype(network, dtype)
            copy.save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        parts = {
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", type(self.tokenizer).__name__],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        write_index(folder, "StableDiffusionPipeline", parts)
