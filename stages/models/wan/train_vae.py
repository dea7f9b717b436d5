"""Training of a Wan VAE (`AutoencoderKLWan`) on clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from stages.models.shared.loading import load_network
from stages.models.shared.training.data import datasets
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.training.pictures import crop, foreground
from stages.models.shared.wan.training import check_size
from stages.models.shared.wan.vae import decoded, pixels, unclamped
from stages.runtime.errors import UsageError

STATISTICS_CLIPS = 256


class VAETask(Task):
    """Reconstruction: L1 and squared error, weighted towards what stands out from the ground, on a slightly noisy latent.

    First single frames, which teach colours and outlines; then clips, of which a part is cut to small squares around what
    stands out, which costs less and looks closer.
    """

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options, self.data = options, datasets(options)
        if options["start_from"]:
            self.vae = load_network(AutoencoderKLWan, Path(options["start_from"]), "vae", dtype=torch.float32)
            self.vae = widened(self.vae, architecture.get("z_dim", self.vae.config.z_dim))
        else:
            channels = architecture["z_dim"]
            self.vae = AutoencoderKLWan(
                **{"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels, **architecture}
            )
            inflate(self.vae)
        check_size(options, self.vae)
        if options["freeze_encoder"]:
            if not options["start_from"]:
                raise UsageError("freeze_encoder is on and there is no encoder yet", "give --start-from, a trained VAE")
            for part in (self.vae.encoder, self.vae.quant_conv):
                part.requires_grad_(False)

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        video = batch["video"]  # [B, 3, T, H, W]
        if self.training:
            video = self._part(video, step, generator)
        mean = self.vae.encode(video).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        noisy = mean + self.options["latent_noise"] * noise
        made = torch.cat(list(unclamped(self.vae, noisy.split(1, dim=2))), dim=2)
        error = made.float() - video
        weight = 1 + self.options["foreground_weight"] * foreground(video)
        return (weight * (error.abs() + error**2)).mean() + self.options["kl_weight"] * (mean.float() ** 2).mean()

    def _part(self, video: torch.Tensor, step: int, generator: torch.Generator) -> torch.Tensor:
        """What of the clips this step looks at: [B, 3, 1 or T, S, S]; of single frames in squares several per clip."""
        images = step < self.options["image_steps"]
        squares = torch.rand((), generator=generator) < self.options["image_crop_share" if images else "crop_share"]
        if images:
            count = self.options["crop_frames"] if squares else 1
            chosen = torch.randint(video.shape[2], (count,), generator=generator).tolist()
            video = torch.cat([video[:, :, frame : frame + 1] for frame in chosen])
        if not squares:
            return video
        size = min(self.options["crop_size"], *video.shape[3:])
        place = torch.rand(len(video), generator=generator).tolist()
        return torch.stack([crop(clip, size, at) for clip, at in zip(video, place, strict=True)])

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Clips and what is left of them after encoding and decoding, in turn."""
        rows = []
        for clip, text in zip(batch["video"][:4], batch["text"]):
            made = decoded(self.vae, self.vae.encode(clip[None]).latent_dist.mode())
            rows.append((text, np.stack([pixels(frame) for frame in clip.unbind(1)])))
            rows.append(("decoded", np.stack([pixels(frame) for frame in made])))
        return rows

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `vae/`, with the mean and spread of its latents in the config, by which the denoiser's are normalised.

        The spread is one for all channels: those that say little stay small, and a denoiser is not busy with them.
        """
        if not self.options["freeze_encoder"]:  # else they are those that a denoiser may already know
            self.vae.register_to_config(**self._statistics())
        in_dtype(self.vae, dtype).save_pretrained(folder / "vae")

    @torch.no_grad()
    def _statistics(self) -> dict[str, list[float]]:
        clips, device = self.data[0], next(self.parameters()).device
        chosen = [clips[i]["video"] for i in range(0, len(clips), max(1, len(clips) // STATISTICS_CLIPS))][:STATISTICS_CLIPS]
        means = torch.cat([self.vae.encode(clip[None].to(device)).latent_dist.mode() for clip in chosen])
        mean, spread = means.mean((0, 2, 3, 4)), means.var((0, 2, 3, 4)).mean().sqrt().item()
        return {"latents_mean": mean.tolist(), "latents_std": [spread] * len(mean)}


def widened(vae: AutoencoderKLWan, channels: int) -> AutoencoderKLWan:
    """The same VAE with more latent channels: at first the decoder does not look at the new ones."""
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


def inflate(vae: nn.Module) -> None:
    """Start as an image autoencoder: of each causal convolution only the tap of the present frame is not zero.

    torch's own initialisation does not get anywhere in the first hundreds of steps; this does from the first.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
            continue
        nn.init.zeros_(module.bias)
        weight = module.weight.data
        if "time_conv" in name:  # each frame to itself, doubled where time is
            channels = torch.arange(weight.shape[1])
            weight.zero_()
            for part in range(weight.shape[0] // weight.shape[1]):
                weight[part * weight.shape[1] + channels, channels, -1, 0, 0] = 1
        elif weight.ndim == 5 and weight.shape[2] > 1:
            present = torch.empty_like(weight[:, :, -1])
            nn.init.kaiming_normal_(present, nonlinearity="linear")
            weight.zero_()
            weight[:, :, -1] = present
        else:
            nn.init.kaiming_normal_(weight, nonlinearity="linear")
