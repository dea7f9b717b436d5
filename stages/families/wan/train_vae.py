"""Training of a Wan VAE (`AutoencoderKLWan`) on clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from stages.families.shared.loading import load_network
from stages.families.shared.pixels import to_uint8
from stages.families.shared.training.data import datasets
from stages.families.shared.training.images import crop
from stages.families.shared.training.loop import in_dtype
from stages.families.shared.training.vae import VAETask
from stages.families.shared.wan.training import check_size
from stages.families.shared.wan.vae import decode_chunks, decode_video
from stages.families.wan.options import WanVaeTrainingOptions

LOG_VARIANCE = -30.0  # the least that diffusers knows


class WanVAETask(VAETask):
    """Trains first on single frames, which teach colours and outlines, then on clips.

    A share of the steps trains on small square crops around the foreground, which is cheaper and weighs details more.
    """

    options: WanVaeTrainingOptions

    def __init__(self, options: WanVaeTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__()
        self.options, self.data = options, datasets(options)
        if options.start_from:
            self.vae = load_network(AutoencoderKLWan, Path(options.start_from), "vae", dtype=torch.float32)
            self.vae = widen(self.vae, architecture.get("z_dim", self.vae.config.z_dim))
        else:
            channels = architecture["z_dim"]
            self.vae = AutoencoderKLWan(
                **{"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels, **architecture}
            )
            inflate(self.vae)
        check_size(options, self.vae)
        if not options.freeze_encoder:
            remove_variance(self.vae)
        self.freeze_encoder()

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        video = batch["video"]  # [B, 3, T, H, W]
        if self.training:
            video = self._subset(video, step, generator)
        mean = self.vae.encode(video).latent_dist.mean
        noisy = self.with_noise(mean, generator)
        reconstruction = torch.cat(list(decode_chunks(self.vae, noisy.split(1, dim=2))), dim=2)
        return self.loss(reconstruction, video, mean)

    def _subset(self, video: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
        """The part of the clips that a step trains on, [B, 3, 1 or T, S, S]: clips or single frames, whole or cropped."""
        images = step < self.options.image_steps
        cropped = torch.rand((), generator=generator) < (
            self.options.image_crop_share if images else self.options.crop_share
        )
        if images:
            count = self.options.crop_frames if cropped else 1
            chosen = torch.randint(video.shape[2], (count,), generator=generator).tolist()
            video = torch.cat([video[:, :, frame : frame + 1] for frame in chosen])
        if not cropped:
            return video
        size = min(self.options.crop_size, *video.shape[3:])
        positions = torch.rand(len(video), generator=generator).tolist()
        return torch.stack([crop(clip, size, position) for clip, position in zip(video, positions, strict=True)])

    def reconstruct(self, clip: torch.Tensor) -> np.ndarray:
        frames = decode_video(self.vae, self.vae.encode(clip[None]).latent_dist.mode())
        return np.stack([to_uint8(frame) for frame in frames])

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `vae/`. Its config holds mean and standard deviation of the latents, which normalise a denoiser's latents.

        The standard deviation is one for all channels: channels of little variance stay small, so that a denoiser does not
        spend itself on them.
        """
        if not self.options.freeze_encoder:  # else an existing denoiser may rely on the statistics of start_from
            self.vae.register_to_config(**self._statistics())
        in_dtype(self.vae, dtype).save_pretrained(folder / "vae")

    @torch.no_grad()
    def _statistics(self) -> dict[str, list[float]]:
        latents = torch.cat([self.vae.encode(clip[None]).latent_dist.mode() for clip in self.statistics_clips()])
        mean, std = latents.mean((0, 2, 3, 4)), latents.var((0, 2, 3, 4)).mean().sqrt().item()
        return {"latents_mean": mean.tolist(), "latents_std": [std] * len(mean)}


def widen(vae: AutoencoderKLWan, channels: int) -> AutoencoderKLWan:
    """Add latent channels to a VAE, up to `channels`. The decoder ignores the new ones at first."""
    had = vae.config.z_dim
    if channels == had:
        return vae
    statistics = {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    wide = AutoencoderKLWan.from_config({**vae.config, "z_dim": channels, **statistics})
    old, new = vae.state_dict(), wide.state_dict()
    for name, weight in new.items():
        if weight.shape == old[name].shape:
            weight.copy_(old[name])
        elif name.startswith("encoder.conv_out"):  # [mean, log variance] x channels
            weight.view(2, channels, *weight.shape[1:])[:, :had] = old[name].view(2, had, *weight.shape[1:])
        elif name == "quant_conv.weight":
            weight.zero_()
            weight.view(2 * channels, -1).fill_diagonal_(1.0)
            blocks = weight.view(2, channels, 2, channels)
            blocks[:, :had, :, :had] = old[name].view(2, had, 2, had)
        elif name == "quant_conv.bias":
            weight.zero_().view(2, channels)[:, :had] = old[name].view(2, had)
        elif name == "post_quant_conv.weight":
            weight.zero_()
            weight.view(channels, channels).fill_diagonal_(1.0)[:had, :had] = old[name].view(had, had)
        elif name == "post_quant_conv.bias":
            weight.zero_()[:had] = old[name]
        else:  # decoder.conv_in.weight
            weight.zero_()[:, :had] = old[name]
    return wide


@torch.no_grad()
def remove_variance(vae: AutoencoderKLWan) -> None:
    """Set the variance of the posterior to almost 0, which this training, on the mean alone, leaves as it is.

    Pipelines that draw from the posterior, such as Helios's, would get noise as strong as the latents.
    """
    vae.quant_conv.weight[vae.config.z_dim :] = 0
    vae.quant_conv.bias[vae.config.z_dim :] = LOG_VARIANCE


def inflate(vae: nn.Module) -> None:
    """Initialise as an image autoencoder: in each causal convolution only the tap of the current frame is not zero.

    With torch's own initialisation the loss hardly falls in the first hundreds of steps.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        weight = module.weight.data
        if "time_conv" in name:  # copies each frame, twice where time is upsampled
            channels = torch.arange(weight.shape[1])
            weight.zero_()
            for part in range(weight.shape[0] // weight.shape[1]):
                weight[part * weight.shape[1] + channels, channels, -1, 0, 0] = 1
        elif weight.ndim == 5 and weight.shape[2] > 1:
            current = torch.empty_like(weight[:, :, -1])
            nn.init.kaiming_normal_(current, nonlinearity="linear")
            weight.zero_()
            weight[:, :, -1] = current
        else:
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
