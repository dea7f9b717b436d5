"""Training of the 3D U-Net on clips with captions, by denoising diffusion (Ho et al. 2020, arXiv:2006.11239)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from stages.families.shared.clip_text import embed
from stages.families.shared.loading import load_network, load_tokenizer
from stages.families.shared.model_index import read_config, write_index
from stages.families.shared.pixels import to_uint8
from stages.families.shared.training.data import collate, datasets
from stages.families.shared.training.loop import Task, in_dtype
from stages.families.shared.training.text import drop_texts, new_text_encoder, words_in
from stages.families.text2video.options import NOISE_SCHEDULES, WORDS, UNetTrainingOptions
from stages.families.text2video.sampler import denoise
from stages.families.text2video.unet import UNet3D, architecture_of_2d, inflate
from stages.runtime.errors import JobError, UsageError
from stages.runtime.log import log
from stages.runtime.model import Model, declared_models

SMALL_TEXT_ENCODER = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 128,
    "max_position_embeddings": 77,
}
WEIGHT_LIMIT = 4.0  # upper limit of the loss weight at low noise, with prediction type sample


class Text2VideoTask(Task):
    """Squared error of the noise, the velocity or the clip, at a timestep drawn uniformly.

    Content and motion of a clip are hard to learn from noise at the same time. A given first frame shows the content, so
    that the text only has to explain the motion.
    """

    options: UNetTrainingOptions

    def __init__(self, options: UNetTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__()
        self.options, self.data = options, datasets(options)
        start = Path(options.start_from) if options.start_from else None
        if start and not (start / "unet" / "config.json").is_file():
            raise UsageError(
                f"{start} has no unet/", "give --start-from a model of train text2video, or a 2D diffusion model"
            )
        inflated = start and read_config(start / "unet").get("_class_name") == "UNet2DConditionModel"
        has_text = start and (not inflated or (start / "text_encoder").is_dir())
        small = SMALL_TEXT_ENCODER if options.text_encoder == WORDS and not has_text else None
        new_text = architecture.get("text_encoder", small)
        if start and has_text:
            self.tokenizer = load_tokenizer(start / "tokenizer")
            self.text = load_network(CLIPTextModel, start, "text_encoder", dtype=torch.float32)
        elif new_text is not None:
            self.tokenizer, self.text = new_text_encoder(new_text, words_in(self.data))
        else:
            self.tokenizer, self.text = load_text_encoder(options.text_encoder)
        self.text.requires_grad_(new_text is not None or bool(has_text and options.train_text_encoder))
        if start and not inflated:
            self.unet = load_network(UNet3D, start, "unet", dtype=torch.float32)
            self.unet.register_to_config(num_frames=options.num_frames, sample_size=options.frame_size)
        else:
            sizes = {name: getattr(options, name) for name in ("model_channels", "num_frames")}
            sizes |= {"sample_size": options.frame_size, "text_dim": self.text.config.hidden_size}
            if start:
                sizes |= architecture_of_2d(read_config(start / "unet"))
            self.unet = UNet3D(**{**sizes, **architecture.get("unet", {})})
        if start and inflated:
            self._inflate(start)
        self._check_size()
        self.condition_dim = self.unet.config.condition_dim
        if options.dataset or self.condition_dim:
            self._condition(collate([self.data[0][0]]))
        self.scheduler = DDPMScheduler(
            num_train_timesteps=options.num_timesteps,
            beta_schedule=NOISE_SCHEDULES[options.noise_schedule],
            prediction_type=options.prediction_type,
            clip_sample=True,
        )

    def _inflate(self, start: Path) -> None:
        """Copy the weights of a 2D U-Net as far as they fit, and log how far that is. Raises UsageError if none does."""
        flat = load_network(UNet2DConditionModel, start, "unet", dtype=torch.float32).state_dict()
        taken = inflate(self.unet, flat)
        if not taken:
            remedy = "leave unet: out of the architecture, or give it the widths of the 2D network"
            raise UsageError(f"no weight of {start}/unet fits this architecture", remedy)
        own = self.unet.state_dict()
        copied, all_flat, all_own = (
            sum(weight.numel() for weight in weights)
            for weights in ((own[name] for name in taken), flat.values(), own.values())
        )
        share = {"of_2d": round(copied / all_flat, 3), "of_3d": round(copied / all_own, 3)}
        reason = f"{share['of_2d']:.0%} of the weights of {start}/unet fit, and are {share['of_3d']:.0%} of the new U-Net"
        log("warning", reason=f"{reason}; its others start at random", **share)

    def _check_size(self) -> None:
        frames, side = self.unet.multiple
        for name, multiple in (("num_frames", frames), ("frame_size", side)):
            if getattr(self.options, name) % multiple:
                raise UsageError(
                    f"{name} is {getattr(self.options, name)}", f"this architecture needs a multiple of {multiple}"
                )

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        clip = batch["video"]  # [B, 3, T, H, W] in -1..1
        count = len(clip)
        timestep = torch.randint(self.options.num_timesteps, (count,), generator=generator).to(clip.device)
        dropped = torch.rand(count, generator=generator) < self.options.text_dropout
        noise = torch.randn(clip.shape, generator=generator).to(clip)
        texts = drop_texts(batch["text"], dropped)
        noisy = self.scheduler.add_noise(clip, noise, timestep)
        noise_mask = torch.ones_like(clip[:, :1])  # [B, 1, T, H, W], 0 where a first frame is given
        given = torch.rand(count, generator=generator) < self.options.first_frame_share
        noise_mask[given, :, 0] = 0
        noisy = noise_mask * noisy + (1 - noise_mask) * clip
        prediction = self.unet(noisy, timestep, embed(self.tokenizer, self.text, texts), **self._condition(batch))
        error = noise_mask * (prediction - self._target(clip, noise, timestep)) ** 2
        if self.options.prediction_type == "sample":
            remaining = 1 - self.scheduler.alphas_cumprod.to(clip)[timestep]
            error = error * (1 / (remaining + 1e-4)).clamp(max=WEIGHT_LIMIT).view(-1, 1, 1, 1, 1)
        return error.sum() / (noise_mask.sum() * clip.shape[1]).clamp(min=1)

    def _target(self, clip: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The target of the prediction, [B, 3, T, H, W]."""
        kind = self.options.prediction_type
        if kind == "v_prediction":
            return self.scheduler.get_velocity(clip, noise, timestep)
        return noise if kind == "epsilon" else clip

    def _condition(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The further condition of a batch, float32 [B, condition_dim], by its name; empty without. Raises UsageError."""
        given, width = batch.get("condition"), self.condition_dim
        if given is None and not width:
            return {}
        if given is None:
            remedy = "give --dataset, a class whose items hold one"
            raise UsageError(f"condition_dim is {width} and the clips hold no condition", remedy)
        if not width:
            remedy = "write condition_dim under architecture: unet: of --config"
            raise UsageError("the clips hold a condition and the U-Net takes none", remedy)
        vectors = torch.stack([torch.as_tensor(one, dtype=torch.float32) for one in given])
        if vectors.shape[1:] != (width,):
            shape = tuple(vectors.shape[1:])
            raise UsageError(
                f"the conditions of the clips have the shape {shape}", f"condition_dim is {width}: make them equal"
            )
        return {"condition": vectors.to(batch["video"])}

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Clips sampled for the captions by DDIM, with guidance."""
        texts = batch["text"][:8]
        generator = torch.Generator().manual_seed(0)
        condition = {name: vectors[: len(texts)] for name, vectors in self._condition(batch).items()}
        noise = torch.randn(batch["video"][: len(texts)].shape, generator=generator).to(batch["video"])
        clips = denoise(
            partial(self.unet, **condition),
            noise,
            embed(self.tokenizer, self.text, texts),
            embed(self.tokenizer, self.text, [""] * len(texts)),
            self.scheduler.config,
            sampler="ddim",
            steps=self.options.sample_steps,
            guidance=self.options.sample_guidance,
            generator=generator,
        )
        return [(text, to_uint8(clip)) for text, clip in zip(texts, clips, strict=True)]

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write `unet`, `text_encoder`, `tokenizer` and `scheduler`."""
        for name, module in (("unet", self.unet), ("text_encoder", self.text)):
            in_dtype(module, dtype).save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        parts = {
            "unet": ["stages.families.text2video.unet", "UNet3D"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", type(self.tokenizer).__name__],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        write_index(folder, "Text2Video", parts)


def load_text_encoder(name: str) -> tuple[PreTrainedTokenizerFast, CLIPTextModel]:
    """Load a CLIP text model by its folder, Hub id or name in ./config.yaml. Raises UsageError if it is not here."""
    declared = declared_models(None).values()
    model = next((model for model in declared if name in (model.name, model.hub)), Model(name, family="", hub=name))
    try:
        folder = Path(name) if Path(name).is_dir() else model.folder()
        return load_tokenizer(folder), load_network(CLIPTextModel, folder, dtype=torch.float32)
    except (OSError, ValueError, JobError) as error:
        raise UsageError(
            f"the text encoder {name} is not on this machine",
            f"fetch it once: {model.fetching}; or add --text-encoder {WORDS}, which trains a small one on the captions",
        ) from error
