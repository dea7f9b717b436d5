"""Captions in a training: a text encoder to begin with, of CLIP's classes, the words that it knows, and those left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from stages.media.shapes.world import WORDS
from stages.models.shared.training.data import ShapesDataset, read_caption
from stages.models.shared.words import word_tokenizer, words_of

START, END, UNKNOWN = SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<unk>")


def new_text_encoder(config: Mapping[str, Any], words: list[str]) -> tuple[PreTrainedTokenizerFast, CLIPTextModel]:
    """A CLIP text model of random weights that knows `words`."""
    raw = word_tokenizer(words, SPECIAL, UNKNOWN, START, END)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=config["max_position_embeddings"],
    )
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return tokenizer, CLIPTextModel(CLIPTextConfig(**ids, **config))


def words_in(data: Sequence[Dataset], further: Sequence[str] = ()) -> list[str]:
    """The words of the captions of clips; of shapes world all that there are, and `further` ones."""
    if isinstance(data[0], ShapesDataset):
        return [*WORDS, *further, ".", ","]
    texts = [read_caption(caption) for clips in data for _, caption in clips.pairs]
    return sorted({word for text in texts for word in words_of(text.lower())})


def left_out(texts: Sequence[str], which: torch.Tensor) -> list[str]:
    """Texts, empty where `which`, bool [B], says so: for guidance."""
    return ["" if drop else text for drop, text in zip(which.tolist(), texts, strict=True)]
