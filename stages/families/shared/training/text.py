"""Captions in a training: a new CLIP text encoder, its vocabulary, and dropout of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from stages.families.shared.training.data import ClipDataset, ShapesDataset, TextVideoDataset, read_caption
from stages.families.shared.word_tokenizer import word_tokenizer, words_of
from stages.media.shapes.world import WORDS

START, END, UNKNOWN = SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<unk>")


def new_text_encoder(config: Mapping[str, Any], words: list[str]) -> tuple[PreTrainedTokenizerFast, CLIPTextModel]:
    """Make a tokenizer of `words` and a CLIP text model of random weights."""
    raw = word_tokenizer(words, SPECIAL, UNKNOWN, START, END)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        model_max_length=config["max_position_embeddings"],
    )
    ids: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return tokenizer, CLIPTextModel(CLIPTextConfig(**ids, **config))


def words_in(data: Sequence[ClipDataset], further: Sequence[str] = ()) -> list[str]:
    """The vocabulary of the captions of clips. For shapes world it is all its words, with `further` ones."""
    if isinstance(data[0], ShapesDataset):
        return [*WORDS, *further, ".", ","]
    folders = [clips for clips in data if isinstance(clips, TextVideoDataset)]
    texts = [read_caption(caption) for clips in folders for _, caption in clips.pairs]
    return sorted({word for text in texts for word in words_of(text.lower())})


def drop_texts(texts: Sequence[str], which: torch.Tensor) -> list[str]:
    """Replace the texts where `which`, bool [B], is true by the empty text, for classifier-free guidance."""
    return ["" if drop else text for drop, text in zip(which.tolist(), texts, strict=True)]
