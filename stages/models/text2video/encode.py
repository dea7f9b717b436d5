"""Encode for `text2video`: a prompt becomes the states of a CLIP text model."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPTextModel

from stages.models.shared.loading import DTYPES, load_network, load_tokenizer, loading
from stages.models.shared.origin import check_beyond, model_fields
from stages.models.shared.prompt import prompt_of
from stages.models.shared.text import embed, warn_of_cut
from stages.models.shared.words import warn_of_unknown_words
from stages.models.text2video.common import unet_config
from stages.models.text2video.options import FAMILY
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker


class Encode(Worker):
    """Writes `encoded`: prompt_embeds and negative_prompt_embeds [1, L, D]."""

    def check(self, work: Work) -> None:
        prompt_of(work)
        if "image" in work.inputs:
            raise ItemError(f"item {work.item.id} has a first frame", f"model {self.model.name} takes a prompt alone")
        check_beyond(FAMILY, self.model, work.options)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load tokenizer and text model. Raises JobError."""
        with loading(self.model):
            self.tokenizer = load_tokenizer(self.model.folder() / "tokenizer")
            self.encoder = load_network(CLIPTextModel, self.model.folder(), "text_encoder", dtype=DTYPES[options["dtype"]])
        self.encoder.to(self.device).eval()

    @torch.no_grad()
    def run(self, work: Work, phase: str) -> None:
        prompt, raw = prompt_of(work)
        negative, trained = work.options["negative_prompt"], unet_config(self.model)
        warn_of_unknown_words(self.tokenizer, prompt, work.item.id)
        warn_of_cut(self.tokenizer, self.encoder, prompt, work.item.id)
        side = work.options["frame_size"] or trained["sample_size"]
        fields = {
            **model_fields(self.model, work),
            "width": side,
            "height": side,
            "num_frames": work.options["num_frames"] or trained["num_frames"],
            "prompt": prompt,
            "negative_prompt": negative,
            "raw": raw,
        }
        tensors = {
            "prompt_embeds": embed(self.tokenizer, self.encoder, [prompt]),
            "negative_prompt_embeds": embed(self.tokenizer, self.encoder, [negative]),
        }
        write_tensors(work.output, "encoded", fields, tensors)
