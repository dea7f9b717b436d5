"""Training of DynamiCrafter on captioned clips, by denoising diffusion on the latents of a frozen VAE.

The condition is the same as at inference: the latents of the first frame, concatenated to every noisy frame; the image
tokens of the first frame; the caption. Captions and image tokens are dropped for a share of the clips, for classifier-free
guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from stages.families.dynamicrafter.condition import clip_pixels, clip_tokenizer
from stages.families.dynamicrafter.convert import write_index
from stages.families.dynamicrafter.decode import decode_frames
from stages.families.dynamicrafter.options import FRAME_STRIDES, MULTIPLE, UNetTrainingOptions
from stages.families.dynamicrafter.resampler import Resampler
from stages.families.dynamicrafter.sampler import (
    NUM_TRAIN_TIMESTEPS,
    PARAMETERISATIONS,
    alphas_cumprod,
    apply_guidance,
    denoise,
    latent_scale,
    schedule,
)
from stages.families.dynamicrafter.unet import UNet
from stages.families.shared.clip_text import clean, embed
from stages.families.shared.loading import load_network
from stages.families.shared.sd_vae import encode_images
from stages.families.shared.training.data import datasets
from stages.families.shared.training.encoded import EncodedDataset
from stages.families.shared.training.images import load_frozen_vae
from stages.families.shared.training.loop import Task, in_dtype
from stages.families.shared.training.text import drop_texts, new_text_encoder, words_in
from stages.runtime.errors import UsageError

SAMPLES = 3  # clips in a sample strip


class DynamiCrafterTask(Task):
    """Mean squared error of what the variant predicts, at randomly drawn timesteps."""

    alphas: torch.Tensor  # alphas_cumprod by timestep, float32 [1000]
    scales: torch.Tensor  # of the latents by timestep, float32 [1000]

    def __init__(self, options: UNetTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        self.parameterisation = PARAMETERISATIONS[options.variant]
        if options.frame_size % MULTIPLE:
            raise UsageError(f"frame_size is {options.frame_size}", f"it must be a multiple of {MULTIPLE}")
        self.vae = load_frozen_vae(options.vae or options.start_from)
        clips = datasets(options)
        if options.start_from:
            self._load(Path(options.start_from))
        else:
            self._initialise(architecture, words_in(clips))
        frozen = bool(options.start_from and options.freeze_encoders)
        for network in (self.text_encoder, self.image_encoder):
            network.requires_grad_(not frozen)
        alphas = torch.from_numpy(alphas_cumprod(self.parameterisation.zero_snr))
        scales = torch.tensor([latent_scale(t, self.parameterisation.base_scale) for t in range(NUM_TRAIN_TIMESTEPS)])
        self.register_buffer("alphas", alphas.float(), persistent=False)
        self.register_buffer("scales", scales.float(), persistent=False)
        train, validation = (EncodedDataset(part, self.encode, options.batch_size) for part in clips)
        self.data = train, validation

    def _load(self, folder: Path) -> None:
        self.tokenizer = clip_tokenizer(folder)
        self.text_encoder = load_network(CLIPTextModel, folder, "text_encoder", dtype=torch.float32)
        self.image_encoder = load_network(CLIPVisionModel, folder, "image_encoder", dtype=torch.float32)
        self.image_projector = load_network(Resampler, folder, "image_projector", dtype=torch.float32)
        self.unet = load_network(UNet, folder, "unet", dtype=torch.float32)

    def _initialise(self, architecture: Mapping[str, Any], words: list[str]) -> None:
        self.tokenizer, self.text_encoder = new_text_encoder(architecture["text_encoder"], words)
        self.image_encoder = CLIPVisionModel(CLIPVisionConfig(**architecture["image_encoder"]))
        width = self.text_encoder.config.hidden_size
        sizes = {"embedding_dim": self.image_encoder.config.hidden_size, "output_dim": width}
        sizes["video_length"] = self.options.num_frames
        self.image_projector = Resampler(**sizes, **architecture["image_projector"])
        learnable = self.options.variant == "256"
        self.unet = UNet(context_dim=width, image_scale_learnable=learnable, **architecture["unet"])

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents` [B, 4, T, h, w] of videos [B, 3, T, H, W], and `image` [B, 3, S, S], their first frames for CLIP."""
        frames = video.transpose(1, 2).flatten(0, 1)
        latents = encode_images(self.vae, frames).unflatten(0, (len(video), -1)).transpose(1, 2)
        return {"latents": latents, "image": clip_pixels(video[:, :, 0], self.image_encoder.config.image_size)}

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]
        count = len(latents)
        uniform = torch.rand(count, generator=generator)
        timestep = (NUM_TRAIN_TIMESTEPS * uniform ** (1 / self.options.noisy_share)).long()
        timestep = timestep.clamp(max=NUM_TRAIN_TIMESTEPS - 1).to(latents.device)
        no_text, no_image = torch.rand(2, count, generator=generator) < self.options.dropout
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        texts = drop_texts(batch["text"], no_text)
        image = torch.where(no_image.view(-1, 1, 1, 1).to(latents.device), self._grey(), batch["image"])
        alpha, scale = (table[timestep].view(-1, 1, 1, 1, 1) for table in (self.alphas, self.scales))
        scaled = scale * latents
        noisy = alpha.sqrt() * scaled + (1 - alpha).sqrt() * noise
        prediction = self._predict(noisy, timestep, latents[:, :, :1], self._text(texts), self._tokens(image))
        if self.parameterisation.predicts == "v":
            return ((prediction - (alpha.sqrt() * noise - (1 - alpha).sqrt() * scaled)) ** 2).mean()
        # weighs the error of the noise as that of the latents, from which small models learn motion
        weight = ((1 - alpha) / alpha).clamp(1, self.options.weight_limit)
        return (weight * (prediction - noise) ** 2).mean() / weight.mean()

    def _predict(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        first_frame: torch.Tensor,
        text: torch.Tensor,
        image: torch.Tensor,
    ) -> torch.Tensor:
        """The U-Net's prediction for `noisy` [B, 4, T, h, w]; `first_frame` has that frame's latents [B, 4, 1, h, w]."""
        inputs = torch.cat([noisy, first_frame.expand_as(noisy)], dim=1)
        stride = torch.full_like(timestep, FRAME_STRIDES[self.options.variant])
        return self.unet(inputs, timestep, text, image, stride)

    def _text(self, texts: list[str]) -> torch.Tensor:
        return embed(self.tokenizer, self.text_encoder, [clean(text) for text in texts])

    def _tokens(self, image: torch.Tensor) -> torch.Tensor:
        return self.image_projector(self.image_encoder(image).last_hidden_state)

    def _grey(self) -> torch.Tensor:
        """CLIP's input for plain grey, [1, 3, S, S]: the image of the unconditional prediction."""
        side = self.image_encoder.config.image_size
        return clip_pixels(torch.zeros(1, 3, side, side, device=self.alphas.device), side)

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """For each caption: the original clip, and the clip generated from its first frame by the sampler of `generate`."""
        true, texts = batch["latents"][:SAMPLES], batch["text"][:SAMPLES]
        conditional = (self._text(texts), self._tokens(batch["image"][:SAMPLES]))
        unconditional = (self._text([""] * len(texts)), self._tokens(self._grey().expand(len(texts), -1, -1, -1)))

        def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
            timesteps = torch.full((len(x),), timestep, device=x.device)
            with_prompt, without = (
                self._predict(x, timesteps, true[:, :, :1], *condition) for condition in (conditional, unconditional)
            )
            return apply_guidance(with_prompt, without, self.options.sample_guidance, 0.0)

        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0)).to(true)
        steps = schedule(self.parameterisation, self.options.sample_steps, 0.0)
        generated = denoise(predict, noise, self.parameterisation, steps, ())
        rows = []
        for text, *clips in zip(texts, true, generated, strict=True):
            original, continuation = (np.stack(list(decode_frames(self.vae, clip[None]))) for clip in clips)
            rows += [(text, original), ("from its first frame", continuation)]
        return rows

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a complete repository in the layout that `convert` writes."""
        for name in ("text_encoder", "image_encoder", "image_projector", "unet", "vae"):
            network: nn.Module = getattr(self, name)
            copy: Any = in_dtype(network, dtype)
            copy.save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        write_index(folder, self.options.variant)
