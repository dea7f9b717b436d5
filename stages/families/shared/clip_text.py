"""Encodes prompts with a CLIP text model."""

from __future__ import annotations

import html
import re
from typing import Any

import ftfy
import torch


def clean(text: str) -> str:
    """Clean a text as open_clip's tokenizer does: repaired Unicode, plain quotes, entities resolved (twice), single spaces,
    lower case. For models that were trained with open_clip; diffusers cleans no text for Stable Diffusion."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip().lower()


def embed(tokenizer: Any, encoder: Any, texts: list[str]) -> torch.Tensor:
    """The last hidden states [B, L, D] of a CLIP text model. Texts are padded or cut to its maximum length L."""
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=encoder.config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    ).to(encoder.device)
    return encoder(tokens.input_ids).last_hidden_state
