"""Converts checkpoints from Wan's own layout to diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from transformers import UMT5Config, UMT5EncoderModel

from stages.families.shared.convert import (
    fill,
    link,
    new_repository,
    read_pickle,
    read_shards,
    rename_weights,
    save,
)
from stages.families.shared.loading import DTYPES
from stages.families.shared.model_index import read_config
from stages.families.shared.wan.names import diffusers_name, text_encoder_name, vae_name
from stages.families.shared.wan.repository import write_index
from stages.families.shared.wan.transformer import empty_transformer
from stages.families.wan.options import PARTS, ConvertOptions, detect
from stages.families.wan.single_file import read_single_file
from stages.runtime.errors import UsageError
from stages.runtime.model import write_settings

EXPERTS = tuple(PARTS.values())
INDEX = "model_index.json"  # in a repository in diffusers' layout
OTHERS = {"text_encoder", "tokenizer", "vae", "scheduler"}  # its components beside the transformers
TOKENIZER = "google/umt5-xxl"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TEXT_ENCODER: dict[str, Any] = {  # of umt5-xxl: Wan's files have no config for it
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
WAN_2_1_VAE: dict[str, Any] = {}  # the defaults of AutoencoderKLWan
# fmt: off
WAN_2_2_VAE: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    "latents_std": [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
}
# fmt: on


class Layout(NamedTuple):
    """Files and settings of a checkpoint beside its transformers. `variant` is the argument of `write_index`."""

    variant: str
    vae_file: str
    vae: dict[str, Any]
    flow_shift: float
    boundary_ratio: float | None = None


LAYOUTS: dict[tuple[Any, int], Layout] = {  # by the model type in config.json, and the number of transformers
    ("ti2v", 1): Layout("5b", "Wan2.2_VAE.pth", WAN_2_2_VAE, flow_shift=5.0),
    ("i2v", 2): Layout("14b", "Wan2.1_VAE.pth", WAN_2_1_VAE, flow_shift=3.0, boundary_ratio=0.9),
    ("t2v", 2): Layout("14b-t2v", "Wan2.1_VAE.pth", WAN_2_1_VAE, flow_shift=3.0, boundary_ratio=0.875),
    ("t2v", 1): Layout("", "Wan2.1_VAE.pth", WAN_2_1_VAE, flow_shift=3.0),
}


def convert(options: ConvertOptions, output: Path) -> None:
    """Convert a folder in Wan's own layout to a repository at `output`, in the precision of the files.

    All files are read and checked before anything is written. Raises UsageError for a folder of another model and for
    incomplete files; `output` does not exist then.
    """
    checkpoint = Path(options.ckpt_dir)
    files = {name: Path(path) for name in PARTS if (path := getattr(options, name))}
    with new_repository(output) as folder:
        if files and (checkpoint / INDEX).is_file():
            return replace_transformers(checkpoint, files, DTYPES[options.dtype], folder)
        experts = [checkpoint / name for name in EXPERTS if (checkpoint / name).is_dir()]
        sources = dict(zip(PARTS, experts or [checkpoint], strict=False))
        layout = find_layout(checkpoint, sources)
        check_parts(files, sources, checkpoint)
        for name in (TEXT_ENCODER_FILE, layout.vae_file, TOKENIZER):
            if not (checkpoint / name).exists():
                raise UsageError(f"{checkpoint} has no {name}", "give the complete folder as it was published")
        parts = {
            name: read_transformer(transformer_config(source), source, files.get(name), DTYPES[options.dtype])
            for name, source in sources.items()
        }
        parts["text_encoder"] = read_text_encoder(checkpoint / TEXT_ENCODER_FILE)
        parts["vae"] = read_vae(checkpoint / layout.vae_file, layout.vae)
        for name, model in parts.items():
            save(model, folder / name)
        link(checkpoint / TOKENIZER, folder / "tokenizer")
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=layout.flow_shift
        )
        scheduler.save_pretrained(folder / "scheduler")
        write_index(folder, layout.variant, layout.boundary_ratio)
        if layout.variant:  # Wan2.1 text to video has no family of its own: convert longlive starts from it
            write_settings(folder, {"family": "wan", "variant": layout.variant})


def replace_transformers(repository: Path, files: Mapping[str, Path], dtype: torch.dtype, folder: Path) -> None:
    """Write a repository in diffusers' layout again, with the weights of some transformers from files. Raises UsageError."""
    variant = detect(repository)
    if variant is None:
        raise UsageError(
            f"{repository} is no repository of Wan2.2", "give that of Wan2.2-TI2V-5B, Wan2.2-I2V-A14B or Wan2.2-T2V-A14B"
        )
    present = {name: repository / name for name in PARTS if (repository / name).is_dir()}
    check_parts(files, present, repository)
    transformers = {
        name: read_transformer(read_config(present[name]), present[name], path, dtype) for name, path in files.items()
    }
    for name, transformer in transformers.items():
        save(transformer, folder / name)
    for source in sorted(repository.iterdir()):
        if source.name == INDEX or (source.is_dir() and source.name in OTHERS | present.keys() - files.keys()):
            link(source, folder / source.name)
    write_settings(folder, {"family": "wan", "variant": variant}, before=repository)


def check_parts(files: Mapping[str, Path], present: Mapping[str, Path], checkpoint: Path) -> None:
    """Raise UsageError for the file of a transformer that the model does not have."""
    if unknown := [name for name in files if name not in present]:
        raise UsageError(f"{checkpoint} has no {unknown[0]}, and {files[unknown[0]]} is given for it", "leave that file out")


def find_layout(checkpoint: Path, sources: Mapping[str, Path]) -> Layout:
    """The layout of a folder, by the config of its first transformer. Raises UsageError for an unknown model."""
    kind = read_config(sources["transformer"]).get("model_type")
    if (kind, len(sources)) not in LAYOUTS:
        number = ("one transformer", "two transformers")[len(sources) - 1]
        raise UsageError(
            f"{checkpoint} has {f'{number} of type {kind!r}' if kind else 'no config.json'}",
            "give the folder of Wan2.2-TI2V-5B, -I2V-A14B, -T2V-A14B or Wan2.1-T2V in Wan's own layout",
        )
    return LAYOUTS[kind, len(sources)]


def read_transformer(config: Mapping[str, Any], folder: Path, file: Path | None, dtype: torch.dtype) -> torch.nn.Module:
    """Read a transformer with the `config` in a folder from the folder's safetensors files, or from a single file.

    Quantised weights of a single file get the `dtype`. Raises UsageError.
    """
    transformer = empty_transformer(config, folder)
    shapes = {name: parameter.shape for name, parameter in transformer.named_parameters()}
    weights = read_single_file(file, shapes, dtype) if file else rename_weights(read_shards(folder), diffusers_name, folder)
    fill(transformer, weights, file or folder)
    return transformer


def transformer_config(folder: Path) -> dict[str, Any]:
    """Translate Wan's config.json to the config of `WanTransformer3DModel`. Raises UsageError if a key is missing."""
    config = read_config(folder)
    try:
        return {
            "num_attention_heads": config["num_heads"],
            "attention_head_dim": config["dim"] // config["num_heads"],
            "in_channels": config["in_dim"],
            "out_channels": config["out_dim"],
            "text_dim": config.get("text_dim", 4096),  # published configs lack it: the width of umt5-xxl
            "freq_dim": config["freq_dim"],
            "ffn_dim": config["ffn_dim"],
            "num_layers": config["num_layers"],
            "eps": config["eps"],
        }
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"{folder / 'config.json'} is no config of a Wan transformer ({error})",
            "give the complete folder as it was published",
        ) from error


def read_text_encoder(path: Path) -> torch.nn.Module:
    """Read the text encoder from a file. Raises UsageError."""
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**TEXT_ENCODER))
    fill(encoder, rename_weights(read_pickle(path), text_encoder_name, path), path)
    encoder.tie_weights()
    return encoder


def read_vae(path: Path, config: Mapping[str, Any]) -> torch.nn.Module:
    """Read the VAE from a file. Raises UsageError."""
    with torch.device("meta"):
        vae = AutoencoderKLWan(**config)
    fill(vae, rename_weights(read_pickle(path), vae_name, path), path)
    return vae
