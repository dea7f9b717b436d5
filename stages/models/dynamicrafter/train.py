"""Training of DynamiCrafter on clips with captions, by denoising diffusion on the latents of a VAE that stays as it is.

What the U-Net is told is what it is told when it is run: the latents of the first frame behind the noise in every frame, the
first frame as tokens, the caption. Captions and tokens are left out in a part of the clips, for guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from stages.models.dynamicrafter.condition import clip_pixels, clip_tokenizer
from stages.models.dynamicrafter.convert import write_index
from stages.models.dynamicrafter.decode import decoded
from stages.models.dynamicrafter.options import FRAME_STRIDES, MULTIPLE
from stages.models.dynamicrafter.resampler import Resampler
from stages.models.dynamicrafter.sampler import PARAMETERISATIONS, TRAINED, clip_scale, denoise, guided, schedule, signal
from stages.models.dynamicrafter.unet import UNet
from stages.models.shared.loading import load_network
from stages.models.shared.picture_vae import encoded
from stages.models.shared.text import clean, embed
from stages.models.shared.training.data import datasets
from stages.models.shared.training.encoded import Encoded
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.training.pictures import frozen_vae
from stages.models.shared.training.text import left_out, new_text_encoder, words_in
from stages.runtime.errors import UsageError

SHOWN = 3  # clips of a sample strip


class DynamiCrafterTask(Task):
    """The squared error of what the variant predicts, at a timestep drawn at random."""

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        self.parameterisation = PARAMETERISATIONS[options["variant"]]
        if options["frame_size"] % MULTIPLE:
            raise UsageError(f"frame_size is {options['frame_size']}", f"it must be a multiple of {MULTIPLE}")
        self.vae = frozen_vae(options)
        clips = datasets(options)
        if options["start_from"]:
            self._load(Path(options["start_from"]))
        else:
            self._begin(architecture, words_in(clips))
        frozen = bool(options["start_from"] and options["freeze_encoders"])
        for network in (self.text_encoder, self.image_encoder):
            network.requires_grad_(not frozen)
        alphas = torch.from_numpy(signal(self.parameterisation.zero_snr))
        scales = torch.tensor([clip_scale(t, self.parameterisation.base_scale) for t in range(TRAINED)])
        self.register_buffer("alphas", alphas.float(), persistent=False)
        self.register_buffer("scales", scales.float(), persistent=False)
        self.data = tuple(Encoded(part, self.encode, options["batch_size"]) for part in clips)

    def _load(self, folder: Path) -> None:
        self.tokenizer = clip_tokenizer(folder)
        self.text_encoder = load_network(CLIPTextModel, folder, "text_encoder", dtype=torch.float32)
        self.image_encoder = load_network(CLIPVisionModel, folder, "image_encoder", dtype=torch.float32)
        self.image_projector = load_network(Resampler, folder, "image_projector", dtype=torch.float32)
        self.unet = load_network(UNet, folder, "unet", dtype=torch.float32)

    def _begin(self, architecture: Mapping[str, Any], words: list[str]) -> None:
        self.tokenizer, self.text_encoder = new_text_encoder(architecture["text_encoder"], words)
        self.image_encoder = CLIPVisionModel(CLIPVisionConfig(**architecture["image_encoder"]))
        width = self.text_encoder.config.hidden_size
        sizes = {"embedding_dim": self.image_encoder.config.hidden_size, "output_dim": width}
        sizes["video_length"] = self.options["num_frames"]
        self.image_projector = Resampler(**sizes, **architecture["image_projector"])
        learnable = self.options["variant"] == "256"
        self.unet = UNet(context_dim=width, image_scale_learnable=learnable, **architecture["unet"])

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents` [B, 4, T, h, w] of videos, and `picture` [B, 3, S, S], the first frame as CLIP's image model sees it."""
        frames = video.transpose(1, 2).flatten(0, 1)
        latents = encoded(self.vae, frames).unflatten(0, (len(video), -1)).transpose(1, 2)
        return {"latents": latents, "picture": clip_pixels(video[:, :, 0], self.image_encoder.config.image_size)}

    # ------------------------------------------------------------------------------------------------------------ loss

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        latents = batch["latents"]
        count = len(latents)
        even = torch.rand(count, generator=generator)
        timestep = (TRAINED * even ** (1 / self.options["noisy_share"])).long().clamp(max=TRAINED - 1).to(latents.device)
        no_text, no_picture = torch.rand(2, count, generator=generator) < self.options["dropout"]
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        texts = left_out(batch["text"], no_text)
        picture = torch.where(no_picture.view(-1, 1, 1, 1).to(latents.device), self._grey(), batch["picture"])
        alpha, scale = (table[timestep].view(-1, 1, 1, 1, 1) for table in (self.alphas, self.scales))
        clip = scale * latents
        noisy = alpha.sqrt() * clip + (1 - alpha).sqrt() * noise
        made = self._predict(noisy, timestep, latents[:, :, :1], self._text(texts), self._tokens(picture))
        if self.parameterisation.predicts == "v":
            return ((made - (alpha.sqrt() * noise - (1 - alpha).sqrt() * clip)) ** 2).mean()
        # an error of the noise is one of the clip, this much larger; small models learn motion by the latter
        weight = ((1 - alpha) / alpha).clamp(1, self.options["weight_limit"])
        return (weight * (made - noise) ** 2).mean() / weight.mean()

    def _predict(self, noisy, timestep, picture, text, image) -> torch.Tensor:
        told = torch.cat([noisy, picture.expand_as(noisy)], dim=1)
        stride = torch.full_like(timestep, FRAME_STRIDES[self.options["variant"]])
        return self.unet(told, timestep, text, image, stride)

    def _text(self, texts: list[str]) -> torch.Tensor:
        return embed(self.tokenizer, self.text_encoder, [clean(text) for text in texts])

    def _tokens(self, picture: torch.Tensor) -> torch.Tensor:
        return self.image_projector(self.image_encoder(picture).last_hidden_state)

    def _grey(self) -> torch.Tensor:
        side = self.image_encoder.config.image_size
        return clip_pixels(torch.zeros(1, 3, side, side, device=self.alphas.device), side)

    # ---------------------------------------------------------------------------------------------------------- sample

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Per caption the true clip, and the one made from its first frame by the sampler that the stage uses."""
        true, texts = batch["latents"][:SHOWN], batch["text"][:SHOWN]
        told = (self._text(texts), self._tokens(batch["picture"][:SHOWN]))
        untold = (self._text([""] * len(texts)), self._tokens(self._grey().expand(len(texts), -1, -1, -1)))

        def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
            at = torch.full((len(x),), timestep, device=x.device)
            with_prompt, without = (self._predict(x, at, true[:, :, :1], *condition) for condition in (told, untold))
            return guided(with_prompt, without, self.options["sample_guidance"], 0.0)

        noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0)).to(true)
        steps = schedule(self.parameterisation, self.options["sample_steps"], 0.0)
        made = denoise(predict, noise, self.parameterisation, steps, ())
        rows = []
        for text, *clips in zip(texts, true, made, strict=True):
            shown = [np.stack(list(decoded(self.vae, clip[None]))) for clip in clips]
            rows += [(text, shown[0]), ("from its first frame", shown[1])]
        return rows

    def settings(self) -> dict[str, Any]:
        side = self.options["frame_size"]
        size = f"{side}*{side}"
        options = {
            "size": size,
            "video_length": self.options["num_frames"],
            "num_inference_steps": self.options["sample_steps"],
            "guidance_scale": self.options["sample_guidance"],
        }
        return {"family": "dynamicrafter", "variant": self.options["variant"], "sizes": [size], "options": options}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a whole repository in the layout that convert writes."""
        for name in ("text_encoder", "image_encoder", "image_projector", "unet", "vae"):
            network: nn.Module = getattr(self, name)
            in_dtype(network, dtype).save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        write_index(folder, self.options["variant"])
