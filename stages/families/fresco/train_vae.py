"""Training of the VAE of Stable Diffusion (`AutoencoderKL`) on the frames of clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from stages.families.fresco.looks import TwoLooks
from stages.families.fresco.options import ImageVaeTrainingOptions
from stages.families.shared.loading import load_network
from stages.families.shared.pixels import to_uint8
from stages.families.shared.sd_vae import decode_frames, encode_images
from stages.families.shared.training.data import datasets
from stages.families.shared.training.images import crop
from stages.families.shared.training.loop import in_dtype
from stages.families.shared.training.vae import VAETask
from stages.runtime.errors import UsageError


class ImageVAETask(VAETask):
    """Each step trains on square crops of the frames, or on whole frames downscaled to the size of a crop."""

    def __init__(self, options: ImageVaeTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__()
        self.options, self.data = options, datasets(options, TwoLooks)
        if options.start_from:
            self.vae = load_network(AutoencoderKL, Path(options.start_from), "vae", dtype=torch.float32)
        else:
            self.vae = AutoencoderKL(**architecture)
        self.freeze_encoder()
        stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        for name in ("frame_size", "crop_size"):
            if getattr(options, name) % stride:
                raise UsageError(f"{name} is {getattr(options, name)}", f"this architecture needs a multiple of {stride}")

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        images = batch["video"].transpose(1, 2).flatten(0, 1)  # [N, 3, H, W]
        if self.training:
            images = self._crop_or_downscale(images, generator)
        mean = self.vae.encode(images).latent_dist.mean
        reconstruction = self.vae.decode(self.with_noise(mean, generator), return_dict=False)[0]
        return self.loss(reconstruction[:, :, None], images[:, :, None], mean)

    def _crop_or_downscale(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Images [N, 3, H, W] cropped, or downscaled, to [N, 3, S, S]."""
        size = min(self.options.crop_size, *images.shape[2:])
        if torch.rand((), generator=generator) >= self.options.crop_share:
            return F.interpolate(images, (size, size), mode="area")
        places = torch.rand(len(images), generator=generator).tolist()
        return torch.stack([crop(image[:, None], size, at)[:, 0] for image, at in zip(images, places, strict=True)])

    def reconstruct(self, clip: torch.Tensor) -> np.ndarray:
        frames = decode_frames(self.vae, encode_images(self.vae, clip.transpose(0, 1)).transpose(0, 1)[None])
        return to_uint8(torch.cat(list(frames)).transpose(0, 1))

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `vae/`, with the scaling factor that gives latents a standard deviation of 1."""
        if not self.options.freeze_encoder:  # a denoiser may already be trained with the old factor
            self.vae.register_to_config(scaling_factor=self._scaling())
        vae: Any = in_dtype(self.vae, dtype)
        vae.save_pretrained(folder / "vae")

    @torch.no_grad()
    def _scaling(self) -> float:
        latents = [self.vae.encode(clip[None, :, 0]).latent_dist.mode() for clip in self.statistics_clips()]
        return 1 / torch.cat(latents).std().item()
