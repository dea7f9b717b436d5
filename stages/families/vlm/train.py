"""Training of a captioner (InternVL) on clips with captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import InternVLForConditionalGeneration

from stages.families.shared.loading import load_network, load_tokenizer
from stages.families.shared.pixels import to_uint8
from stages.families.shared.training.data import datasets
from stages.families.shared.training.loop import Task, in_dtype
from stages.families.shared.word_tokenizer import word_tokenizer
from stages.families.vlm import build
from stages.families.vlm.caption import question
from stages.families.vlm.options import CaptionTrainingOptions
from stages.families.vlm.traits import INTERNVL
from stages.media.select import midpoint_indices
from stages.media.shapes.world import WORDS

IGNORED = -100  # label of tokens that the library's loss ignores
FRAME_NAMES = tuple(f"frame{i}" for i in range(1, 17))
CHAT_WORDS = ("user", "assistant", "describe", "this", "video", "in", "detail", ".", ",", ":", *FRAME_NAMES)


class CaptionTask(Task):
    """Next-token prediction of the caption, after the question that `caption_vlm` asks."""

    options: CaptionTrainingOptions

    def __init__(self, options: CaptionTrainingOptions, architecture: Mapping[str, Any]):
        super().__init__()
        self.options = options
        self.data = datasets(options)
        if options.start_from:
            start = Path(options.start_from)
            self.tokenizer = load_tokenizer(start)
            self.vlm = load_network(InternVLForConditionalGeneration, start, dtype=torch.float32)
        else:
            words = word_tokenizer([*WORDS, *CHAT_WORDS], (*build.SPECIAL, build.UNKNOWN), build.UNKNOWN)
            self.tokenizer = build.chat_tokenizer(words, unk_token=build.UNKNOWN)
            self.vlm = build.build(self.tokenizer, **architecture)
        # the frames that caption_vlm chooses with the options that `settings` declares
        self.frame_indices = midpoint_indices(np.arange(options.num_frames), options.num_segments)
        if options.include_last:
            self.frame_indices.append(options.num_frames - 1)
        counts = [self.vlm.config.image_seq_length] * len(self.frame_indices)
        text = question(INTERNVL, self.tokenizer, self.frame_indices, counts, options.instruction)
        self.question = self.tokenizer(text, add_special_tokens=False).input_ids
        statistics = [torch.tensor(build.NORMALISATION[name]) for name in ("image_mean", "image_std")]
        self.mean, self.std = (values.view(3, 1, 1) for values in statistics)

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        video = batch["video"]
        if self.training:
            strength = self.options.pixel_noise * torch.rand(len(video), 1, 1, 1, 1, generator=generator)
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
        """The N frames that the model sees, normalised: [B * N, 3, S, S] of clips [B, 3, T, S, S] in -1..1."""
        frames = video[:, :, self.frame_indices].transpose(1, 2).flatten(0, 1).clamp(-1, 1) / 2 + 0.5
        return (frames - self.mean.to(frames)) / self.std.to(frames)

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Clips, titled with the model's caption and the true one."""
        video, texts = batch["video"][:8], batch["text"][:8]
        tokens = torch.tensor([self.question] * len(video), device=video.device)
        output = self.vlm.generate(
            pixel_values=self._pixels(video),
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=24,
        )
        captions = self.tokenizer.batch_decode(output[:, tokens.shape[1] :], skip_special_tokens=True)
        titles = [f"{caption}  (true: {text})" for caption, text in zip(captions, texts, strict=True)]
        return [(title, to_uint8(clip)) for title, clip in zip(titles, video, strict=True)]

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        model = in_dtype(self.vlm, dtype)
        model.generation_config = self.vlm.generation_config
        build.save(folder, model, self.tokenizer)
