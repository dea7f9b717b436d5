"""Conversion of DynamiCrafter's published checkpoints (`model.ckpt` or pruned safetensors) to a repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from stages.families.dynamicrafter.names import text_weights, vae_weights, vision_weights
from stages.families.dynamicrafter.options import ConvertOptions, converted_settings
from stages.families.dynamicrafter.resampler import Resampler
from stages.families.dynamicrafter.unet import UNet
from stages.families.shared import model_index
from stages.families.shared.convert import Weights, fill, new_repository, read_pickle, rename_weights, save
from stages.families.shared.loading import load_network, load_tokenizer, quiet
from stages.runtime.errors import UsageError, one_line
from stages.runtime.model import write_settings

PREFIXES = {  # of each component's weights in a checkpoint
    "unet": "model.diffusion_model.",
    "image_projector": "image_proj_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.model.",
    "image_encoder": "embedder.model.visual.",
}
UNUSED = "embedder.model."  # the text half of the CLIP whose image half is used
DEEPSPEED = "_forward_module."
OLD_NAMES = {"framestride_embed": "fps_embedding"}  # of the 256 checkpoint
LEARNABLE = ".attn2.alpha"
PADDING = "!"  # id 0, as in OpenCLIP; padding with the end token changes the embeddings

UNET: dict[str, Any] = {}  # the classes' defaults
RESAMPLER: dict[str, Any] = {}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {  # of ViT-H/14 (laion2b_s32b_b79k), without its last layer
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
    "hidden_act": "gelu",
}


def convert(options: ConvertOptions, output: Path) -> None:
    """Write a repository to `output` from the checkpoint `ckpt` and the tokenizer of `clip`.

    A pruned checkpoint has no encoders: they are taken from `clip`. Everything is read and checked before anything is
    written. Raises UsageError for files that do not fit; nothing is at `output` then.
    """
    quiet()
    checkpoint, variant, clip = Path(options.ckpt), options.resolution, Path(options.clip)
    with new_repository(output) as folder:
        parts = split(read(checkpoint), checkpoint)
        learnable = any(name.endswith(LEARNABLE) for name in parts["unet"])
        check_variant(variant, learnable, checkpoint)
        tokenizer = read_tokenizer(clip)
        models = empty_models(learnable)
        fill(models["unet"], parts["unet"], checkpoint)
        fill(models["image_projector"], parts["image_projector"], checkpoint)
        fill(models["vae"], vae_weights(parts["vae"]), checkpoint)
        if parts["text_encoder"] or parts["image_encoder"]:
            fill(models["text_encoder"], text_weights(parts["text_encoder"], TEXT["num_hidden_layers"]), checkpoint)
            fill(models["image_encoder"], vision_weights(parts["image_encoder"]), checkpoint)
        else:
            fill_from_clip(models["text_encoder"], models["image_encoder"], clip)
        for name, model in models.items():
            save(model, folder / name)
        tokenizer.save_pretrained(folder / "tokenizer")
        write_index(folder, variant)
        write_settings(folder, {"family": "dynamicrafter", **converted_settings(options.values())})


def check_variant(variant: str, learnable: bool, checkpoint: Path) -> None:
    """Raise UsageError if the checkpoint is not of `variant`, as far as is known: only 256 has a learnable image scale."""
    if learnable != (variant == "256"):
        raise UsageError(
            f"{checkpoint} is {'' if learnable else 'not '}of the 256 model (by its U-Net's {LEARNABLE.rpartition('.')[2]})",
            f"give --resolution {'256' if learnable else '512, 1024 or 512_interp'}",
        )


def empty_models(learnable: bool) -> dict[str, Any]:
    """The networks by component, on the meta device."""
    with torch.device("meta"):
        return {
            "unet": UNet(**UNET, image_scale_learnable=learnable),
            "image_projector": Resampler(**RESAMPLER),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
            "image_encoder": CLIPVisionModel(CLIPVisionConfig(**VISION)),
        }


def write_index(folder: Path, variant: str) -> None:
    """Write model_index.json: the components, and the variant: weights of 512 and 1024 have equal shapes."""
    parts = {
        "unet": ["stages.families.dynamicrafter.unet", "UNet"],
        "image_projector": ["stages.families.dynamicrafter.resampler", "Resampler"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    model_index.write_index(folder, "DynamiCrafter", parts, variant=variant)


def read(checkpoint: Path) -> Weights:
    """The weights of a file, by their published names. Raises UsageError for a file that cannot be read."""
    if checkpoint.suffix == ".safetensors":
        try:
            return load_file(checkpoint)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{checkpoint} cannot be read ({one_line(error)})", "fetch it again") from error
    file = read_pickle(checkpoint)
    file = file if isinstance(file, Mapping) else {}
    weights = file.get("state_dict", file.get("module", file))
    return rename_weights(weights, published_name, checkpoint)


def published_name(name: str) -> str:
    """The name of a weight in the newer checkpoints, for its name in any of them."""
    name = name.removeprefix(DEEPSPEED)
    for old, new in OLD_NAMES.items():
        name = name.replace(old, new)
    return name


def split(weights: Weights, checkpoint: Path) -> dict[str, Weights]:
    """The weights of each component, without its prefix. Raises UsageError for a weight of no component.

    Names without a dot are tables of the noise schedule. They are dropped: the sampler computes them.
    """
    parts: dict[str, Weights] = {part: {} for part in PREFIXES}
    for name, weight in weights.items():
        part = next((part for part, prefix in PREFIXES.items() if name.startswith(prefix)), None)
        if part:
            parts[part][name.removeprefix(PREFIXES[part])] = weight
        elif "." in name and not name.startswith(UNUSED):
            raise UsageError(f"{checkpoint} has {name}, which is no part of DynamiCrafter", "give model.ckpt, as published")
    return parts


def read_tokenizer(clip: Path) -> Any:
    """The tokenizer of a CLIP repository, with OpenCLIP's padding. Raises UsageError if it cannot be read."""
    try:
        tokenizer = load_tokenizer(clip)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{clip} has no tokenizer ({one_line(error)})", "give --clip a folder of laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        ) from error
    tokenizer.pad_token = PADDING
    return tokenizer


def fill_from_clip(text: CLIPTextModel, vision: CLIPVisionModel, clip: Path) -> None:
    """Fill the two encoders from a CLIP repository. Raises UsageError for missing weights and for another architecture."""
    try:
        model = load_network(CLIPModel, clip)
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        raise UsageError(
            f"the checkpoint has no encoders and those of {clip} cannot be read ({one_line(error)})",
            "give --clip a folder of laion/CLIP-ViT-H-14-laion2B-s32B-b79K with model.safetensors",
        ) from error
    dropped = f"encoder.layers.{TEXT['num_hidden_layers']}."
    text_parameters = dict(model.text_model.named_parameters())
    fill(text, {name: w.data for name, w in text_parameters.items() if not name.startswith(dropped)}, clip)
    fill(vision, {name: w.data for name, w in model.vision_model.named_parameters()}, clip)
