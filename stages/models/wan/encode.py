"""Encode for Wan2.2: a prompt and a first frame become embeddings and condition latents. The 5b also goes without a frame.

The text passes UMT5 in the chosen precision, the frame the VAE in float32. Nothing is random: the mode of the VAE's
posterior is taken, as `WanImageToVideoPipeline` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from stages.media.read import read_picture
from stages.models.shared.origin import check_beyond, model_fields
from stages.models.shared.picture import picture_of, read_first
from stages.models.shared.prompt import prompt_of
from stages.models.shared.wan.limits import limits
from stages.models.shared.wan.repository import load_encoders
from stages.models.shared.words import warn_of_unknown_words
from stages.models.wan.options import FAMILY
from stages.runtime.artifacts import Artifact, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.worker import Work, Worker


class Encode(Worker):
    """Writes `encoded`: prompt_embeds and negative_prompt_embeds [1, L, D], image_latents float32, mask uint8."""

    def check(self, work: Work) -> None:
        prompt_of(work)
        source, multiple = work.inputs.get("image"), limits(self.model.folder()).stride
        if source is None and self.model.variant != "5b":
            raise ItemError(f"item {work.item.id} has no first frame", f"the {self.model.variant} needs one: encode IMAGE")
        picture = picture_of(source) if source else f"size {work.options['size']}"
        width, height = size_of(source) if source else map(int, work.options["size"].split("*"))
        if width % multiple or height % multiple:
            raise ItemError(
                f"{picture} is {width}x{height} and the {self.model.variant} needs multiples of {multiple}",
                "make it with extract_frames --size, or scale it",
            )
        check_beyond(FAMILY, self.model, {**work.options, "size": f"{width}*{height}"})

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load tokenizer, text encoder and VAE. Raises JobError."""
        from diffusers import WanImageToVideoPipeline

        self.pipe = load_encoders(WanImageToVideoPipeline, self.model, options, self.device)
        self.negatives: dict[tuple[str, int], torch.Tensor] = {}

    @torch.no_grad()
    def run(self, work: Work, phase: str) -> None:
        prompt, raw = prompt_of(work)
        negative, length = work.options["negative_prompt"], work.options["max_sequence_length"]
        warn_of_unknown_words(self.pipe.tokenizer, prompt, work.item.id)
        self._warn_of_cut(work, prompt, length)
        if (negative, length) not in self.negatives:
            self.negatives[negative, length] = self._embed(negative, length)
        if "image" in work.inputs:
            frame = Image.fromarray(read_first(work.inputs["image"]))
            width, height = frame.size
            image_latents, mask = self._condition(frame, work.options["frame_num"])
        else:
            width, height = map(int, work.options["size"].split("*"))
            image_latents, mask = self._nothing_known(width, height, work.options["frame_num"])
        fields = {
            **model_fields(self.model, work),
            "width": width,
            "height": height,
            "num_frames": work.options["frame_num"],
            "prompt": prompt,
            "negative_prompt": negative,
            "raw": raw,
        }
        tensors = {
            "prompt_embeds": self._embed(prompt, length),
            "negative_prompt_embeds": self.negatives[negative, length],
            "image_latents": image_latents,
            "mask": mask,
        }
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ItemError(f"{name} of {work.item.id} has NaN or infinite numbers", "try --dtype bfloat16 or float32")
        write_tensors(work.output, "encoded", fields, tensors)

    def _embed(self, text: str, length: int) -> torch.Tensor:
        """Embeddings [1, length, D] of a text; the rows behind its end are zero."""
        return self.pipe.encode_prompt(
            text, do_classifier_free_guidance=False, max_sequence_length=length, device=self.device
        )[0]

    def _condition(self, frame: Image.Image, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised latents of the condition, float32, and the mask of what it knows, uint8.

        14b: the frame and grey behind it, [1, 16, T, h, w] and [1, 4, T, h, w] (a channel per frame of a latent).
        5b: the frame alone, [1, 48, 1, h, w] and [1, 1, T, h, w].
        """
        vae = self.pipe.vae.config
        width, height = frame.size
        pixels = self.pipe.video_processor.preprocess(frame, height=height, width=width)  # [1, 3, H, W] in -1..1
        grid = self._grid(width, height, num_frames)
        unused = torch.empty(1, vae.z_dim, *grid)  # in the place of the noise, which is made by generate
        _, *condition = self.pipe.prepare_latents(
            pixels.to(self.device), 1, vae.z_dim, height, width, num_frames, torch.float32, self.device, None, unused
        )
        if self.model.variant == "5b":
            image_latents, made = condition
            mask = 1 - made
        else:
            mask, image_latents = condition[0].split((4, vae.z_dim), dim=1)
        return image_latents, mask.to(torch.uint8)

    def _nothing_known(self, width: int, height: int, num_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A condition of the 5b that says nothing: text to video."""
        frames, *place = self._grid(width, height, num_frames)
        return torch.zeros(1, self.pipe.vae.config.z_dim, 1, *place), torch.zeros(1, 1, frames, *place, dtype=torch.uint8)

    def _grid(self, width: int, height: int, num_frames: int) -> tuple[int, int, int]:
        """Latents in time, down and across."""
        spatial = self.pipe.vae.config.scale_factor_spatial
        return (num_frames - 1) // 4 + 1, height // spatial, width // spatial

    def _warn_of_cut(self, work: Work, prompt: str, length: int) -> None:
        from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean

        tokens = len(self.pipe.tokenizer(prompt_clean(prompt)).input_ids)
        if tokens > length:
            log("prompt_cut", item=work.item.id, tokens=tokens, kept=length, cut=tokens - length)


def size_of(source: Artifact | Path) -> tuple[int, int]:
    """Width and height of the first frame."""
    if isinstance(source, Artifact):
        return source.fields["width"], source.fields["height"]
    height, width, _ = read_picture(source).shape
    return width, height
