"""The index of a Wan repository in diffusers' layout."""

import json
from pathlib import Path

import diffusers


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
