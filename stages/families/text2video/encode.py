"""Encode for `text2video`: turns a prompt into the hidden states of a CLIP text model."""

from pathlib import Path

import torch
from transformers import CLIPTextModel

from stages.families.shared.clip_text import embed
from stages.families.shared.item import check_against_model, check_past, encoded_fields, require_prompt
from stages.families.shared.loading import DTYPES, load_network, load_tokenizer, loading
from stages.families.shared.word_tokenizer import warn_of_unread
from stages.families.text2video.common import unet_config
from stages.families.text2video.condition import read_condition
from stages.families.text2video.options import FAMILY, EncodeOptions
from stages.runtime.artifacts import write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker


class Encode(Worker[EncodeOptions]):
    """Writes `encoded`: prompt_embeds and negative_prompt_embeds [1, L, D], and condition [1, E] if there is one."""

    def check(self, work: Work[EncodeOptions]) -> None:
        require_prompt(work)
        check_past(work, FAMILY, self.model.variant)
        if "image" in work.inputs:
            raise ItemError(
                f"item {work.item.id} has a first frame", f"leave it out: model {self.model.name} takes only a prompt"
            )
        check_against_model(FAMILY, self.model, work.options.values())
        if path := work.options.condition:
            given, width = len(read_condition(Path(path))), unet_config(self.model)["condition_dim"]
            if given != width:
                raise ItemError(f"the condition {path} has {given} numbers", f"model {self.model.name} takes {width}")

    def load(self, options: EncodeOptions) -> None:
        """Load tokenizer and text model. Raises JobError."""
        with loading(self.model):
            self.tokenizer = load_tokenizer(self.model.folder() / "tokenizer")
            folder, dtype = self.model.folder(), DTYPES[options.dtype]
            self.encoder = load_network(CLIPTextModel, folder, "text_encoder", self.device, dtype).eval()

    @torch.no_grad()
    def run(self, work: Work[EncodeOptions]) -> None:
        prompt, raw = require_prompt(work)
        config = unet_config(self.model)
        warn_of_unread(self.tokenizer, prompt, self.encoder.config.max_position_embeddings, work.item.id)
        side = work.options.frame_size or config["sample_size"]
        num_frames = work.options.num_frames or config["num_frames"]
        fields = encoded_fields(self.model, work, (side, side), num_frames, prompt, raw)
        tensors = {
            "prompt_embeds": embed(self.tokenizer, self.encoder, [prompt]),
            "negative_prompt_embeds": embed(self.tokenizer, self.encoder, [work.options.negative_prompt]),
        }
        if work.options.condition:
            tensors["condition"] = read_condition(Path(work.options.condition))[None]
        write_tensors(work.output, "encoded", fields, tensors)
