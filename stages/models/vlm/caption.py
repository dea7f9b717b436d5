"""Captions by InternVL, without remote code and without torchvision.

The library's own processor for videos needs torchvision. This takes its parts: the tokenizer's chat template, an image
processor on Pillow, one tile per frame, and the text that the processor would write for them. Token ids are equal to the
library's, pixels up to the rounding of another resize. torch is imported only where a model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.media.options import PICTURE_ENDINGS
from stages.media.read import Frame, read_picture
from stages.media.select import sample
from stages.models.shared.origin import check_beyond
from stages.models.vlm.chat import chat
from stages.models.vlm.options import FAMILY, INSTRUCTION
from stages.models.vlm.prompt import prompt_from
from stages.runtime.artifacts import Artifact, write_index
from stages.runtime.components import read_config
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker

if TYPE_CHECKING:
    import numpy as np
    import torch

# what InternVL's video processor takes where its file names no numbers (CLIP's)
VIDEO_DEFAULTS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
TAKEN = ("image_mean", "image_std", "size")


class Caption(Worker):
    """Writes `caption`: the raw description of a video and the prompt made of it, or the prompt that was given."""

    def check(self, work: Work) -> None:
        if isinstance(work.inputs["video"], Artifact):
            work.inputs["video"].member(".mp4")
        if not work.options["prompt"]:
            check_beyond(FAMILY, self.model, work.options)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load tokenizer, image processor and model. Raises JobError."""
        from stages.models.shared.loading import DTYPES, load_image_processor, load_network, load_tokenizer, loading

        folder = self.model.folder()
        with loading(self.model):
            from transformers import AutoModelForImageTextToText

            self.tokenizer = load_tokenizer(folder)
            chat(self.tokenizer, INSTRUCTION.default)  # a template that fails is told before the weights are loaded
            self.images = load_image_processor(folder, backend="pil", **video_numbers(folder))
            self.vlm = load_network(AutoModelForImageTextToText, folder, dtype=DTYPES[options["dtype"]])
        self.vlm.to(self.device).eval()

    def run(self, work: Work, phase: str) -> None:
        if work.options["prompt"]:
            self._write(work, raw="", prompt=work.options["prompt"].strip(), frames=[], tokens=(0, 0))
            return
        source = work.inputs["video"]
        path = source.member(".mp4") if isinstance(source, Artifact) else source
        if path.suffix.lower() in PICTURE_ENDINGS:
            frames = [Frame(0, 0.0, read_picture(path))]
        else:
            frames = sample(path, work.options["num_segments"], work.options["include_last"])
        raw, tokens = self._describe([frame.rgb for frame in frames], work.options)
        prompt = prompt_from(raw, work.options["prefix"])
        if not prompt:
            raise ItemError(f"the model said nothing usable about {path} ({raw!r})", "give a prompt, or another instruction")
        self._write(work, raw, prompt, [frame.index for frame in frames], tokens)

    def _describe(self, pictures: list[np.ndarray], options: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
        """What the model says of uint8 pictures [H, W, 3], and the numbers of tokens in and out."""
        inputs = self.inputs(pictures, options["instruction"])
        out = self.vlm.generate(**inputs, do_sample=False, max_new_tokens=options["max_new_tokens"])
        said = out[0, inputs["input_ids"].shape[1] :]
        return self.tokenizer.decode(said, skip_special_tokens=True), (inputs["input_ids"].shape[1], len(said))

    def inputs(self, pictures: list[np.ndarray], instruction: str) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [1, L], and pixel_values [N, 3, S, S] of N pictures."""
        text = question(self.tokenizer, self.vlm.config.image_seq_length, len(pictures), instruction)
        tokens = self.tokenizer(text, add_special_tokens=False, return_tensors="pt").to(self.device)
        pixels = self.images(pictures, crop_to_patches=False, return_tensors="pt")["pixel_values"]
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": pixels.to(self.device, self.vlm.dtype),
        }

    def _write(self, work: Work, raw: str, prompt: str, frames: list[int], tokens: tuple[int, int]) -> None:
        fields = {
            "model": self.model.name if self.model else "",
            "family": "vlm",
            "variant": "",
            "weights": work.weights,
            "raw": raw,
            "prompt": prompt,
            "frames": frames,
            "tokens": {"in": tokens[0], "out": tokens[1]},
        }
        write_index(work.output, "caption", fields)


def question(tokenizer, tokens_per_frame: int, frames: int, instruction: str) -> str:
    """The chat in which an instruction is given: a line per frame of the video, with a place for each visual token."""
    text = chat(tokenizer, instruction)
    frame = f"{tokenizer.start_image_token}{tokenizer.context_image_token * tokens_per_frame}{tokenizer.end_image_token}"
    return text.replace(tokenizer.video_token, "\n".join(f"Frame{i + 1}: {frame}" for i in range(frames)), 1)


def video_numbers(folder: Path) -> dict[str, Any]:
    """Size, mean and standard deviation of the checkpoint's video processor; empty where it has none."""
    told = {name: folder / f"{name}_config.json" for name in ("video_preprocessor", "processor")}
    configs = {name: read_config(path) for name, path in told.items() if path.is_file()}
    config = configs.get("video_preprocessor") or configs.get("processor", {}).get("video_processor", {})
    return {name: value for name, value in {**VIDEO_DEFAULTS, **config}.items() if name in TAKEN} if config else {}
