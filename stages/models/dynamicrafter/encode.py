"""Encode for DynamiCrafter: a prompt and a picture become text states, image tokens and latents."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.media.read import read_picture
from stages.models.dynamicrafter.condition import Encoders, as_pixels
from stages.models.dynamicrafter.options import FAMILY, TRAINED_LENGTH, check_last
from stages.models.shared.origin import check_beyond, model_fields
from stages.models.shared.picture import read_first
from stages.models.shared.prompt import prompt_of
from stages.models.shared.text import clean, warn_of_cut
from stages.models.shared.words import warn_of_unknown_words
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.size import parse_size
from stages.runtime.worker import Work, Worker


class Encode(Worker):
    """Writes `encoded`: prompt_embeds, image_embeds and their negatives, and image_latents, all float32."""

    def check(self, work: Work) -> None:
        prompt_of(work)
        check_last(self.model.variant, work.options)
        if "image" not in work.inputs:
            raise ItemError(f"item {work.item.id} has no picture", "give one: encode IMAGE")
        parse_size(work.options["size"])
        check_beyond(FAMILY, self.model, work.options)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load tokenizer, text and image model, Resampler and VAE. Raises JobError."""
        self.encoders = Encoders(self.model, self.device)

    def run(self, work: Work, phase: str) -> None:
        prompt, raw = prompt_of(work)
        options = work.options
        width, height = size = parse_size(options["size"])
        warn_of_unknown_words(self.encoders.tokenizer, clean(prompt), work.item.id)
        warn_of_cut(self.encoders.tokenizer, self.encoders.text_encoder, clean(prompt), work.item.id)
        if options["video_length"] != TRAINED_LENGTH:
            reason = f"{options['video_length']} frames: the model was trained on {TRAINED_LENGTH} and moves badly at others"
            log("warning", item=work.item.id, reason=reason)
        first = as_pixels(read_first(work.inputs["image"]), size)
        last = first if options["loop"] else None
        if options["last_image"]:
            last = as_pixels(read_picture(Path(options["last_image"])), size)
        fields = {
            **model_fields(self.model, work),
            "width": width,
            "height": height,
            "num_frames": options["video_length"],
            "prompt": prompt,
            "negative_prompt": options["negative_prompt"],
            "raw": raw,
            "loop": options["loop"],
        }
        tensors = self.encoders.condition(prompt, options["negative_prompt"], first, last, options["video_length"])
        write_tensors(work.output, "encoded", fields, tensors)
