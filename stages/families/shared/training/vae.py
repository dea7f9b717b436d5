"""Base class of the trainings of VAEs: reconstruction from slightly noisy latents, weighted towards the foreground."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from stages.families.shared.pixels import to_uint8
from stages.families.shared.training.images import foreground
from stages.families.shared.training.loop import Task
from stages.families.shared.training.options import VaeTrainingOptions
from stages.runtime.errors import UsageError

STATISTICS_CLIPS = 256


class VAETask(Task):
    """Trains `self.vae` to reconstruct clips: L1 and squared error, with extra weight on the foreground."""

    options: VaeTrainingOptions
    vae: Any  # AutoencoderKL or AutoencoderKLWan

    def freeze_encoder(self) -> None:
        """Freeze the encoder if option freeze_encoder says so. Raises UsageError if there is no trained encoder yet."""
        if not self.options.freeze_encoder:
            return
        if not self.options.start_from:
            raise UsageError("freeze_encoder is on and there is no encoder yet", "give --start-from, a trained VAE")
        for part in (self.vae.encoder, self.vae.quant_conv):
            part.requires_grad_(False)

    def with_noise(self, mean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Add the noise of option latent_noise to latents."""
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        return mean + self.options.latent_noise * noise

    def loss(self, reconstruction: torch.Tensor, video: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """The loss of a reconstruction of videos [B, 3, T, H, W] in -1..1, and of their latents `mean`."""
        error = reconstruction.float() - video
        weight = 1 + self.options.foreground_weight * foreground(video)
        return (weight * (error.abs() + error**2)).mean() + self.options.kl_weight * (mean.float() ** 2).mean()

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Clips, each followed by its reconstruction."""
        rows = []
        for clip, text in zip(batch["video"][:4], batch["text"]):
            rows += [(text, to_uint8(clip)), ("decoded", self.reconstruct(clip))]
        return rows

    @abstractmethod
    def reconstruct(self, clip: torch.Tensor) -> np.ndarray:
        """Encode and decode a clip [3, T, H, W] in -1..1: uint8 [T, H, W, 3]."""

    def statistics_clips(self) -> Iterator[torch.Tensor]:
        """Yield clips [3, T, H, W] spread over the data, for the statistics of the latents."""
        clips, device = self.data[0], next(self.parameters()).device
        for i in range(0, len(clips), max(1, len(clips) // STATISTICS_CLIPS))[:STATISTICS_CLIPS]:
            yield clips[i]["video"].to(device)
