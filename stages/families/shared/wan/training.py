"""Base class of the trainings on latents of a Wan VAE: text encoder, latents of clips, decoded samples."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from stages.families.shared.loading import load_network, load_tokenizer
from stages.families.shared.pixels import to_uint8
from stages.families.shared.training.encoded import vae_folder
from stages.families.shared.training.loop import Task, in_dtype
from stages.families.shared.training.options import TrainingOptions
from stages.families.shared.wan.options import LatentOptions
from stages.families.shared.wan.vae import decode_video, denormalise, encode_video
from stages.families.shared.word_tokenizer import word_tokenizer
from stages.media.shapes.world import WORDS
from stages.runtime.errors import UsageError

PAD, END, UNKNOWN = SPECIAL = ("<pad>", "</s>", "<unk>")


class LatentTask(Task):
    """A training on the latents of a frozen VAE, with a text encoder that is new or that of `start_from`."""

    options: LatentOptions

    def __init__(self, options: LatentOptions, architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        self.source = vae_folder(options.vae_source, "wan-vae")
        self.vae = load_network(AutoencoderKLWan, self.source, "vae", dtype=torch.float32)
        self.vae.requires_grad_(False).eval()
        check_size(options, self.vae, patch=2)
        if start := options.start_from:
            self.tokenizer = load_tokenizer(Path(start) / "tokenizer")
            self.text = load_network(UMT5EncoderModel, Path(start), "text_encoder", dtype=torch.float32)
        else:
            self.tokenizer, self.text = new_text_encoder(architecture["text_encoder"])
        self.text.requires_grad_(options.trains_text_encoder)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training. A frozen text encoder stays without dropout."""
        super().train(mode)
        self.text.train(mode and self.options.trains_text_encoder)
        return self

    def embed(self, texts: list[str]) -> torch.Tensor:
        """Embeddings [B, L, D] of texts, zero after the last token of each, as in Wan."""
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.options.max_sequence_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.text.device)
        states = self.text(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states * tokens.attention_mask[..., None]

    def encode(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents`: normalised latents [B, C, T, h, w] of videos [B, 3, F, H, W] in -1..1."""
        return {"latents": encode_video(self.vae, video.to(self.text.device))}

    def pixels(self, latents: torch.Tensor) -> np.ndarray:
        """Decode normalised latents [1, C, T, h, w] to a clip, uint8 [T, H, W, 3]."""
        return np.stack([to_uint8(frame) for frame in decode_video(self.vae, denormalise(self.vae, latents))])

    def save_around(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the components of a repository beside the transformers. The VAE is copied."""
        shutil.copytree(self.source / "vae", folder / "vae")
        in_dtype(self.text, dtype).save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")


def new_text_encoder(config: Mapping[str, Any]) -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    """Make a tokenizer of the words of shapes world, and a text encoder of random weights."""
    words = word_tokenizer([*WORDS, "continue", "video", ".", ","], SPECIAL, UNKNOWN, end=END)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    full = UMT5Config(
        vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0, **config
    )
    return tokenizer, UMT5EncoderModel(full)


def check_size(options: TrainingOptions, vae: AutoencoderKLWan, patch: int = 1) -> None:
    """Raise UsageError for clips whose frames or sides the VAE would round, or whose latents are no whole patches."""
    time, side = vae.config.scale_factor_temporal, vae.config.scale_factor_spatial * patch
    if options.num_frames % time != 1:
        raise UsageError(f"num_frames is {options.num_frames}", f"this VAE needs {time}n+1, for example {2 * time + 1}")
    for name in ("frame_size", "crop_size"):
        if getattr(options, name, 0) % side:
            raise UsageError(f"{name} is {getattr(options, name)}", f"this architecture needs a multiple of {side}")
