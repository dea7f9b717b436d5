"""What the training and the stages of `text2video` share."""

from __future__ import annotations

from typing import Any

import torch

from stages.models.shared.loading import read_config
from stages.runtime.errors import JobError
from stages.runtime.model import Model


def embed(tokenizer, encoder, texts: list[str]) -> torch.Tensor:
    """The CLIP text model's last states of texts, padded and cut to its length: [B, L, D]."""
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=encoder.config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    ).to(encoder.device)
    return encoder(tokens.input_ids).last_hidden_state


def unet_config(model: Model) -> dict[str, Any]:
    """What the U-Net's config says. Raises JobError where there is none."""
    if not (config := read_config(model.folder() / "unet")):
        raise JobError(f"model {model.name} in {model.folder()} has no unet/config.json", "give a model of train text2video")
    return config
