"""Captions by InternVL, without remote code and without torchvision.

The library's processor for videos needs torchvision. This module combines the parts of it that do not: the tokenizer's chat
template, an image processor on Pillow with one tile per frame, and the text that the processor would write. Token ids equal
the library's; pixels differ by the rounding of another resize. torch is imported only if a model is needed.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.families.shared.item import check_against_model
from stages.families.vlm.chat import chat
from stages.families.vlm.options import FAMILY, CaptionOptions
from stages.families.vlm.prompt import prompt_from
from stages.media.options import IMAGE_ENDINGS
from stages.media.read import Frame, read_image
from stages.media.select import sample
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.batching import BatchWorker
from stages.runtime.components import read_config
from stages.runtime.errors import ItemError
from stages.runtime.resident import RESIDENTS
from stages.runtime.worker import Work

if TYPE_CHECKING:
    import numpy as np
    import torch

# defaults of InternVL's video processor, for values that its config lacks (those of CLIP)
VIDEO_DEFAULTS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
USED = ("image_mean", "image_std", "size")


@dataclass(frozen=True)
class Description:
    """What a model says of a video, with the indices of the frames and the numbers of tokens, in and out."""

    raw: str = ""
    frames: list[int] = field(default_factory=list)
    tokens: tuple[int, int] = (0, 0)


class Caption(BatchWorker[CaptionOptions, Description]):
    """Writes `caption`: the raw description of a video and the prompt made of it, or the prompt of the options."""

    def check(self, work: Work[CaptionOptions]) -> None:
        source = work.input("video")
        if isinstance(source, Artifact):
            source.member(".mp4")
        if not work.options.prompt:
            check_against_model(FAMILY, self.model, work.options.values())

    def load(self, options: CaptionOptions) -> None:
        """Load tokenizer, image processor and model. Raises JobError."""
        from stages.families.shared.loading import DTYPES, load_image_processor, load_network, load_tokenizer, loading

        folder = self.model.folder()
        with loading(self.model):
            from transformers import AutoModelForImageTextToText

            self.tokenizer = RESIDENTS.take(self.model, "tokenizer", lambda: load_tokenizer(folder))
            chat(self.tokenizer, options.instruction)  # raises for an invalid template before the weights are loaded
            self.image_processor = load_image_processor(folder, backend="pil", **video_settings(folder))
            dtype = DTYPES[options.dtype]
            load = partial(load_network, AutoModelForImageTextToText, folder, device=self.device, dtype=dtype)
            self.vlm = RESIDENTS.take(self.model, ".", load, dtype).eval()

    def run(self, work: Work[CaptionOptions]) -> None:
        if work.options.prompt:
            self._write(work, Description(), work.options.prompt.strip())
        else:
            super().run(work)

    def batch_size(self, work: Work[CaptionOptions]) -> int:
        return work.options.caption_batch_size

    def batch_key(self, work: Work[CaptionOptions]) -> Hashable:
        return repr(work.options)

    def compute(self, works: Sequence[Work[CaptionOptions]]) -> Sequence[Description]:
        shown = [self._frames(work) for work in works]
        described: dict[int, Description] = {}
        for count in {len(frames) for frames in shown}:  # clips of as many frames need no padding
            alike = [number for number, frames in enumerate(shown) if len(frames) == count]
            answers = self._describe([[frame.rgb for frame in shown[number]] for number in alike], works[0].options)
            for number, (raw, tokens) in zip(alike, answers, strict=True):
                described[number] = Description(raw, [frame.index for frame in shown[number]], tokens)
        return [described[number] for number in range(len(works))]

    def write(self, work: Work[CaptionOptions], result: Description) -> None:
        prompt = prompt_from(result.raw, work.options.prefix)
        if not prompt:
            raise ItemError(
                f"the model's description of {video_path(work)} is empty after cleaning ({result.raw!r})",
                "give a prompt, or another instruction",
            )
        self._write(work, result, prompt)

    def _frames(self, work: Work[CaptionOptions]) -> list[Frame]:
        """The frames that the model sees of an item."""
        path = video_path(work)
        if path.suffix.lower() in IMAGE_ENDINGS:
            return [Frame(0, 0.0, read_image(path))]
        return sample(path, work.options.num_segments, work.options.include_last)

    def _describe(self, clips: Sequence[Sequence[np.ndarray]], options: CaptionOptions) -> list[tuple[str, tuple[int, int]]]:
        """Describe clips of N images each, uint8 [H, W, 3].

        Returns the description of each, and the numbers of its input and output tokens.
        """
        import torch

        each = [self.inputs(images, options.instruction) for images in clips]
        inputs = {name: torch.cat([one[name] for one in each]) for name in each[0]}
        settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": options.max_new_tokens}
        if len(clips) > 1:  # the keys and values of a batch are many: they are written in place, not copied for each token
            settings |= {"cache_implementation": "static", "disable_compile": True}
        output = self.vlm.generate(**inputs, **settings)
        given = inputs["input_ids"].shape[1]
        answers = [up_to_end(ids, self.vlm.generation_config.eos_token_id) for ids in output[:, given:].tolist()]
        return [(self.tokenizer.decode(ids, skip_special_tokens=True), (given, len(ids))) for ids in answers]

    def inputs(self, images: Sequence[np.ndarray], instruction: str) -> dict[str, torch.Tensor]:
        """The model's inputs for N images: input_ids and attention_mask [1, L], pixel_values [N, 3, S, S]."""
        text = question(self.tokenizer, self.vlm.config.image_seq_length, len(images), instruction)
        tokens = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.device)
        pixels = self.image_processor(list(images), crop_to_patches=False, return_tensors="pt")["pixel_values"]
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": pixels.to(self.device, self.vlm.dtype),
        }

    def _write(self, work: Work[CaptionOptions], description: Description, prompt: str) -> None:
        fields = {
            "model": work.item.model,
            "family": "vlm",
            "variant": "",
            "weights": work.weights,
            "raw": description.raw,
            "prompt": prompt,
            "frames": description.frames,
            "tokens": {"in": description.tokens[0], "out": description.tokens[1]},
        }
        write_index(work.output, "caption", fields)


def video_path(work: Work[CaptionOptions]) -> Path:
    """The file of an item's video or image."""
    source = work.input("video")
    return source.member(".mp4") if isinstance(source, Artifact) else source


def up_to_end(ids: Sequence[int], end: int | Sequence[int] | None) -> Sequence[int]:
    """Token ids up to the first that ends a text. What follows is padding, where other texts of a batch are longer."""
    ends = {end} if isinstance(end, int) else set(end or ())
    length = next((number for number, one in enumerate(ids, 1) if one in ends), len(ids))
    return ids[:length]


def question(tokenizer: Any, tokens_per_frame: int, frames: int, instruction: str) -> str:
    """The chat that asks an instruction about a video: a line per frame, with a placeholder for each visual token."""
    text = chat(tokenizer, instruction)
    frame = f"{tokenizer.start_image_token}{tokenizer.context_image_token * tokens_per_frame}{tokenizer.end_image_token}"
    return text.replace(tokenizer.video_token, "\n".join(f"Frame{i + 1}: {frame}" for i in range(frames)), 1)


def video_settings(folder: Path) -> dict[str, Any]:
    """Size, mean and standard deviation of the checkpoint's video processor; empty if it has none."""
    paths = {name: folder / f"{name}_config.json" for name in ("video_preprocessor", "processor")}
    configs = {name: read_config(path) for name, path in paths.items() if path.is_file()}
    config = configs.get("video_preprocessor") or configs.get("processor", {}).get("video_processor", {})
    return {name: value for name, value in {**VIDEO_DEFAULTS, **config}.items() if name in USED} if config else {}
