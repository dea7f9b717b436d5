"""A Wan repository in diffusers' layout: its index, and how its texts are cleaned."""

from pathlib import Path

import diffusers

from stages.families.shared import model_index


def write_index(folder: Path, variant: str, boundary_ratio: float | None = None) -> None:
    """Write model_index.json to `folder`, with the content of the published repositories of a variant.

    The variant is 14b, 14b-t2v or 5b for Wan2.2, or "" for Wan2.1 text to video.
    """
    transformer = ["diffusers", "WanTransformer3DModel"]
    two, from_image = variant.startswith("14b"), variant == "14b"
    pipeline = "WanImageToVideoPipeline" if from_image else "WanPipeline"  # of the 5b too
    settings = {
        "_diffusers_version": diffusers.__version__,
        "boundary_ratio": boundary_ratio if two else None,
        "expand_timesteps": variant == "5b",
    }
    parts = {
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": transformer,
        "transformer_2": transformer if two else [None, None],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if from_image:
        parts |= {"image_encoder": [None, None], "image_processor": [None, None]}
    model_index.write_index(folder, pipeline, parts, **settings)


def clean(prompt: str) -> str:
    """Clean a prompt as diffusers' Wan pipelines do before tokenizing."""
    from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean  # only here: see `quiet`

    return prompt_clean(prompt)
