"""Training of the VAE of Stable Diffusion (`AutoencoderKL`) on the frames of clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from stages.models.fresco.looks import TwoLooks
from stages.models.shared.clip import to_uint8
from stages.models.shared.loading import load_network
from stages.models.shared.picture_vae import decoded, encoded
from stages.models.shared.training.data import datasets
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.training.pictures import crop, foreground
from stages.runtime.errors import UsageError

STATISTICS_CLIPS = 256


class PictureVAETask(Task):
    """Reconstruction: L1 and squared error, weighted towards what stands out from the ground, on a slightly noisy latent.

    A part of the steps looks at squares of the frames, the others at whole ones, shrunk to that size.
    """

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options, self.data = options, datasets(options, TwoLooks)
        if options["start_from"]:
            self.vae = load_network(AutoencoderKL, Path(options["start_from"]), "vae", dtype=torch.float32)
        else:
            self.vae = AutoencoderKL(**architecture)
        if options["freeze_encoder"]:
            if not options["start_from"]:
                raise UsageError("freeze_encoder is on and there is no encoder yet", "give --start-from, a trained VAE")
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)
        stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        for name in ("frame_size", "crop_size"):
            if options[name] % stride:
                raise UsageError(f"{name} is {options[name]}", f"this architecture needs a multiple of {stride}")

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        pictures = batch["video"].transpose(1, 2).flatten(0, 1)  # [N, 3, H, W]
        if self.training:
            pictures = self._looked_at(pictures, generator)
        mean = self.vae.encode(pictures).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        made = self.vae.decode(mean + self.options["latent_noise"] * noise, return_dict=False)[0]
        error = made.float() - pictures
        weight = 1 + self.options["foreground_weight"] * foreground(pictures[:, :, None])[:, :, 0]
        return (weight * (error.abs() + error**2)).mean() + self.options["kl_weight"] * (mean.float() ** 2).mean()

    def _looked_at(self, pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """What of the pictures this step looks at, [N, 3, S, S]."""
        size = min(self.options["crop_size"], *pictures.shape[2:])
        if torch.rand((), generator=generator) >= self.options["crop_share"]:
            return F.interpolate(pictures, (size, size), mode="area")
        places = torch.rand(len(pictures), generator=generator).tolist()
        return torch.stack([crop(picture[:, None], size, at)[:, 0] for picture, at in zip(pictures, places, strict=True)])

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Clips and what is left of them after encoding and decoding, in turn."""
        rows = []
        for clip, text in zip(batch["video"][:4], batch["text"]):
            made = decoded(self.vae, encoded(self.vae, clip.transpose(0, 1)).transpose(0, 1)[None])
            rows.append((text, to_uint8(clip)))
            rows.append(("decoded", to_uint8(torch.cat(list(made)).transpose(0, 1))))
        return rows

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `vae/`; by its scaling factor latents have a spread of 1."""
        if not self.options["freeze_encoder"]:  # else a denoiser may already know it
            self.vae.register_to_config(scaling_factor=self._scaling())
        in_dtype(self.vae, dtype).save_pretrained(folder / "vae")

    @torch.no_grad()
    def _scaling(self) -> float:
        clips, device = self.data[0], next(self.parameters()).device
        chosen = [clips[i]["video"][:, 0] for i in range(0, len(clips), max(1, len(clips) // STATISTICS_CLIPS))]
        latents = [self.vae.encode(frame[None].to(device)).latent_dist.mode() for frame in chosen[:STATISTICS_CLIPS]]
        return 1 / torch.cat(latents).std().item()
