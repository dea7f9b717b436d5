"""Prompts as the states of a CLIP text model."""

from __future__ import annotations

import html
import re

import ftfy
import torch

from stages.runtime.log import log


def clean(text: str) -> str:
    """A text as open_clip's tokenizer reads it: mended Unicode with plain quotes, entities resolved (twice), single spaces,
    lower case. For models that were trained behind it; diffusers cleans nothing for Stable Diffusion."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip().lower()


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


def warn_of_cut(tokenizer, encoder, prompt: str, item: str) -> None:
    """Log how much of a prompt is too long for the text model, if any is."""
    tokens, kept = len(tokenizer(prompt).input_ids), encoder.config.max_position_embeddings
    if tokens > kept:
        log("prompt_cut", item=item, tokens=tokens, kept=kept, cut=tokens - kept)
