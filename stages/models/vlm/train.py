"""Training of a captioner (InternVL) on clips with captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import InternVLForConditionalGeneration

from stages.media.select import midpoint_indices
from stages.media.shapes.world import WORDS
from stages.models.shared.clip import to_uint8
from stages.models.shared.loading import load_network, load_tokenizer
from stages.models.shared.training.data import datasets
from stages.models.shared.training.loop import Task, in_dtype
from stages.models.shared.words import word_tokenizer
from stages.models.vlm import build
from stages.models.vlm.caption import question

IGNORED = -100  # the label that the library's loss leaves out
FRAME_NAMES = tuple(f"frame{i}" for i in range(1, 17))
SPOKEN = ("user", "assistant", "describe", "this", "video", "in", "detail", ".", ",", ":", *FRAME_NAMES)


class CaptionTask(Task):
    """The next token of the caption, after the very question that `caption_vlm` asks."""

    def __init__(self, options: Mapping[str, Any], architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        self.data = datasets(options)
        if options["start_from"]:
            start = Path(options["start_from"])
            self.tokenizer = load_tokenizer(start)
            self.vlm = load_network(InternVLForConditionalGeneration, start, dtype=torch.float32)
        else:
            words = word_tokenizer([*WORDS, *SPOKEN], (*build.SPECIAL, build.UNKNOWN), build.UNKNOWN)
            self.tokenizer = build.chat_tokenizer(words, unk_token=build.UNKNOWN)
            self.vlm = build.build(self.tokenizer, **architecture)
        # as caption_vlm chooses them, with the options that the model is declared with
        self.chosen = midpoint_indices(np.arange(options["num_frames"]), options["num_segments"])
        if options["include_last"]:
            self.chosen.append(options["num_frames"] - 1)
        text = question(self.tokenizer, self.vlm.config.image_seq_length, len(self.chosen), options["instruction"])
        self.question = self.tokenizer(text, add_special_tokens=False).input_ids
        numbers = [torch.tensor(build.NORMALISATION[name]) for name in ("image_mean", "image_std")]
        self.mean, self.std = (number.view(3, 1, 1) for number in numbers)

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        video = batch["video"]
        if self.training:
            strength = self.options["pixel_noise"] * torch.rand(len(video), 1, 1, 1, 1, generator=generator)
            video = video + (strength * torch.randn(video.shape, generator=generator)).to(video)
        answers = [self.tokenizer(text + build.END, add_special_tokens=False).input_ids for text in batch["text"]]
        length = max(map(len, answers))
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([[*self.question, *answer, *[pad] * (length - len(answer))] for answer in answers])
        labels = tokens.clone()
        labels[:, : len(self.question)] = IGNORED
        labels[labels == pad] = IGNORED
        tokens, labels = tokens.to(video.device), labels.to(video.device)
        pixels, mask = self._pixels(video), (tokens != pad).long()
        return self.vlm(pixel_values=pixels, input_ids=tokens, attention_mask=mask, labels=labels).loss

    def _pixels(self, video: torch.Tensor) -> torch.Tensor:
        """The frames that are shown, normalised: [B * N, 3, S, S] of clips [B, 3, T, S, S] in -1..1."""
        frames = video[:, :, self.chosen].transpose(1, 2).flatten(0, 1).clamp(-1, 1) / 2 + 0.5
        return (frames - self.mean.to(frames)) / self.std.to(frames)

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Clips under their captions, the model's and the true one."""
        video, texts = batch["video"][:8], batch["text"][:8]
        tokens = torch.tensor([self.question] * len(video), device=video.device)
        said = self.vlm.generate(
            pixel_values=self._pixels(video),
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=24,
        )
        captions = self.tokenizer.batch_decode(said[:, tokens.shape[1] :], skip_special_tokens=True)
        return [(f"{said}  (true: {true})", to_uint8(clip)) for said, true, clip in zip(captions, texts, video, strict=True)]

    def settings(self) -> dict[str, Any]:
        asked = ("instruction", "num_segments", "include_last")
        return {"family": "vlm", "options": {name: self.options[name] for name in asked}}

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        kept = in_dtype(self.vlm, dtype)
        kept.generation_config = self.vlm.generation_config
        build.save(folder, kept, self.tokenizer)
