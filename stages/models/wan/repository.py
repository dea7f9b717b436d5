"""The index of a Wan2.2 repository in diffusers' layout."""

import json
from pathlib import Path

import diffusers


def write_index(folder: Path, variant: str, boundary_ratio: float) -> None:
    """Write model_index.json for the components that lie in `folder`: what the published repositories of the variant say."""
    transformer = ["diffusers", "WanTransformer3DModel"]
    two = variant == "14b"
    index = {
        "_class_name": "WanImageToVideoPipeline" if two else "WanPipeline",  # the 5B is published as the latter
        "_diffusers_version": diffusers.__version__,
        "boundary_ratio": boundary_ratio if two else None,
        "expand_timesteps": not two,
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
