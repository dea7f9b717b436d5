"""A Wan repository in diffusers' layout: its index, and what of it looks at texts and frames."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from stages.models.shared.loading import DTYPES, load_network, load_tokenizer, loading
from stages.models.shared.wan.vae import load_vae
from stages.runtime.model import Model


def write_index(folder: Path, variant: str, boundary_ratio: float | None = None) -> None:
    """Write model_index.json for the components that lie in `folder`: what the published repositories of the variant say.

    The variants are those of Wan2.2, 14b and 5b, and "", Wan2.1 text to video.
    """
    transformer = ["diffusers", "WanTransformer3DModel"]
    two = variant == "14b"
    index = {
        "_class_name": "WanImageToVideoPipeline" if two else "WanPipeline",  # the others are published as the latter
        "_diffusers_version": diffusers.__version__,
        "boundary_ratio": boundary_ratio if two else None,
        "expand_timesteps": variant == "5b",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": transformer,
        "transformer_2": transformer if two else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if two:
        index |= {"image_encoder": [None, None], "image_processor": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_encoders(kind: type, model: Model, options: Mapping[str, Any], device: str) -> Any:
    """A pipeline of diffusers, of class `kind`, with the tokenizer, the text encoder and the VAE of a model, and without a
    transformer. Raises JobError.

    The classes are named here, not read from model_index.json, which may name any. Of the options counts dtype, for the
    text encoder, and vae_tiling.
    """
    with loading(model):
        from transformers import UMT5EncoderModel

        folder = model.folder()
        text = {
            "tokenizer": load_tokenizer(folder / "tokenizer"),
            "text_encoder": load_network(UMT5EncoderModel, folder, "text_encoder", dtype=DTYPES[options["dtype"]]),
        }
    vae = load_vae(model, options["vae_tiling"], device)
    return kind(**text, vae=vae, scheduler=None, expand_timesteps=model.variant == "5b").to(device)
