"""Base of the `encode` workers of the families that use Wan's classes: texts by UMT5, images by the VAE."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from stages.families.shared.loading import DTYPES, load_network, load_tokenizer, loading
from stages.families.shared.text_then_image import TextThenImage
from stages.families.shared.wan.vae import load_vae
from stages.runtime.resident import RESIDENTS
from stages.runtime.worker import AnyOptions


class WanEncode(TextThenImage[AnyOptions]):
    """Encodes with the code of a pipeline of diffusers, `pipe`, which has the networks of the phase and no transformer.

    `kind` is the name of its class. The classes of the networks are fixed here: model_index.json could name any class.
    """

    kind: str

    def load_text_encoder(self, options: Any) -> None:
        """Load the tokenizer and the text encoder, in the precision of option dtype."""
        with loading(self.model):
            from transformers import UMT5EncoderModel

            folder, dtype = self.model.folder(), DTYPES[options.dtype]
            tokenizer = RESIDENTS.take(self.model, "tokenizer", lambda: load_tokenizer(folder / "tokenizer"))
            load = partial(load_network, UMT5EncoderModel, folder, "text_encoder", self.device, dtype)
            text_encoder = RESIDENTS.take(self.model, "text_encoder", load, dtype)
        self.pipe = self._pipeline(tokenizer=tokenizer, text_encoder=text_encoder)

    def load_image_encoder(self, options: Any) -> None:
        """Load the VAE."""
        self.pipe = self._pipeline(vae=load_vae(self.model, options.vae_tiling, self.device))

    def _pipeline(self, **parts: Any) -> Any:
        import diffusers

        absent = dict.fromkeys(("tokenizer", "text_encoder", "vae", "scheduler"))
        return getattr(diffusers, self.kind)(**{**absent, **parts}, expand_timesteps=self.model.variant == "5b")

    def embed(self, texts: str | list[str], length: int) -> torch.Tensor:
        """Embeddings [N, length, D] of N texts, zero after the last token of each."""
        return self.pipe.encode_prompt(
            texts, do_classifier_free_guidance=False, max_sequence_length=length, device=self.device
        )[0]
