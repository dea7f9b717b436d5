"""What trainings on latents of a Wan VAE share: the text encoder, the clips as latents, pixels to look at."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from stages.media.shapes.world import WORDS
from stages.models.shared.loading import load_network, load_tokenizer
from stages.models.shared.training.encoded import vae_folder
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.wan.vae import decoded, denormalised, encoded, pixels
from stages.models.shared.words import word_tokenizer
from stages.runtime.errors import UsageError

PAD, END, UNKNOWN = SPECIAL = ("<pad>", "</s>", "<unk>")


class LatentTask(Task):
    """A training on the latents of a VAE that stays as it is, with a text encoder, new or that of `start_from`."""

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        self.source = vae_folder(options, "wan-vae")
        self.vae = load_network(AutoencoderKLWan, self.source, "vae", dtype=torch.float32)
        self.vae.requires_grad_(False).eval()
        check_size(options, self.vae, patch=2)
        if start := options["start_from"]:
            self.tokenizer = load_tokenizer(Path(start) / "tokenizer")
            self.text = load_network(UMT5EncoderModel, Path(start), "text_encoder", dtype=torch.float32)
        else:
            self.tokenizer, self.text = new_text_encoder(architecture["text_encoder"])
        self.text.requires_grad_(not (start and options["freeze_text_encoder"]))

    def embed(self, texts: list[str]) -> torch.Tensor:
        """Embeddings [B, L, D]; the rows behind a text's end are zero, as Wan has it."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.options["max_sequence_length"],
            truncation=True,
            return_tensors="pt",
        ).to(self.text.device)
        states = self.text(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states * tokens.attention_mask[..., None]

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised latents [B, C, T, h, w] of videos [B, 3, F, H, W]."""
        return {"latents": encoded(self.vae, video.to(self.text.device))}

    def pixels(self, latents: torch.Tensor) -> np.ndarray:
        """A clip, uint8 [T, H, W, 3], of normalised latents [1, C, T, h, w]."""
        return np.stack([pixels(frame) for frame in decoded(self.vae, denormalised(self.vae, latents))])

    def save_around(self, folder: Path, dtype: torch.dtype) -> None:
        """Write what a repository has beside the transformers; the VAE is copied as it is."""
        shutil.copytree(self.source / "vae", folder / "vae")
        in_dtype(self.text, dtype).save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")


def new_text_encoder(config: Mapping[str, Any]) -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    """A tokenizer of the words of shapes world, and an encoder of random weights."""
    words = word_tokenizer([*WORDS, "continue", "video", ".", ","], SPECIAL, UNKNOWN, end=END)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    full = UMT5Config(
        vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0, **config
    )
    return tokenizer, UMT5EncoderModel(full)


def check_size(options: Mapping[str, Any], vae: AutoencoderKLWan, patch: int = 1) -> None:
    """Raise UsageError for clips that the VAE would round, or whose latents do not make whole patches."""
    time, side = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial * patch
    if options["num_frames"] % time != 1:
        raise UsageError(f"num_frames is {options['num_frames']}", f"this VAE needs {time}n+1, for example {2 * time + 1}")
    for name in ("frame_size", "crop_size"):
        if options.get(name, 0) % side:
            raise UsageError(f"{name} is {options[name]}", f"this architecture needs a multiple of {side}")
