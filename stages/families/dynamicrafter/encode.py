"""Encode for DynamiCrafter: a prompt and an image to text embeddings, image tokens and latents."""

from collections.abc import Mapping
from pathlib import Path

import torch

from stages.families.dynamicrafter.condition import ImageEncoder, TextEncoder, resize_and_crop
from stages.families.dynamicrafter.options import FAMILY, TRAINED_LENGTH, EncodeOptions, check_last_image
from stages.families.shared.clip_text import clean
from stages.families.shared.item import check_against_model, check_past, encoded_fields, first_frame, require_prompt
from stages.families.shared.text_then_image import TextThenImage
from stages.families.shared.word_tokenizer import warn_of_unread
from stages.media.read import read_image
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.log import log
from stages.runtime.sizes import parse_size
from stages.runtime.worker import Work


class Encode(TextThenImage[EncodeOptions]):
    """Writes `encoded`: prompt_embeds, image_embeds and their negatives, and image_latents, all float32."""

    def check(self, work: Work[EncodeOptions]) -> None:
        require_prompt(work)
        check_past(work, FAMILY, self.model.variant)
        check_last_image(self.model.variant, work.options.values())
        if "image" not in work.inputs:
            raise ItemError(f"item {work.item.id} has no image", "give one: encode IMAGE")
        parse_size(work.options.size)
        check_against_model(FAMILY, self.model, work.options.values())

    def load_text_encoder(self, options: EncodeOptions) -> None:
        self.texts = TextEncoder(self.model, self.device)

    def load_image_encoder(self, options: EncodeOptions) -> None:
        self.images = ImageEncoder(self.model, self.device)

    def encode_text(self, work: Work[EncodeOptions]) -> dict[str, torch.Tensor]:
        prompt, _ = require_prompt(work)
        max_length = self.texts.network.config.max_position_embeddings
        warn_of_unread(self.texts.tokenizer, clean(prompt), max_length, work.item.id)
        return self.texts.encode(prompt, work.options.negative_prompt)

    def write(self, work: Work[EncodeOptions], texts: Mapping[str, torch.Tensor]) -> None:
        prompt, raw = require_prompt(work)
        options, size = work.options, parse_size(work.options.size)
        if options.num_frames != TRAINED_LENGTH:
            reason = (
                f"num_frames is {options.num_frames}: the model was trained on {TRAINED_LENGTH}, other lengths move badly"
            )
            log("warning", item=work.item.id, reason=reason)
        first = resize_and_crop(first_frame(work.input("image")), size)
        last = first if options.loop else None
        if options.last_image:
            last = resize_and_crop(read_image(Path(options.last_image)), size)
        fields = encoded_fields(self.model, work, size, options.num_frames, prompt, raw, loop=options.loop)
        write_tensors(work.output, "encoded", fields, {**texts, **self.images.encode(first, last, options.num_frames)})
