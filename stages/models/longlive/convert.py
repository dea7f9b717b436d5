"""LongLive's published checkpoints, `longlive_base.pt` and `lora.pt`, beside the other parts of a Wan2.1 repository.

Wan2.1 and LongLive have the same weights by name and shape: what makes the model causal is how it is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from stages.models.longlive.options import detect
from stages.models.shared.convert import (
    Weights,
    check,
    fill,
    link,
    new_repository,
    read_pickle,
    renamed,
    save,
)
from stages.models.shared.loading import read_config
from stages.models.shared.wan.names import diffusers_name
from stages.models.shared.wan.transformer import empty_transformer
from stages.runtime.errors import UsageError
from stages.runtime.log import log
from stages.runtime.model import write_settings

LORA = "lora.safetensors"
PARTS = ("text_encoder", "tokenizer", "vae", "scheduler", "model_index.json")


def convert(base: Path, lora: Path | None, ema: bool, wan: Path, output: Path) -> None:
    """Write a repository to `output`: the transformer of `base`, the rest of `wan`, and `lora` as lora.safetensors.

    Raises UsageError for files that are not what they should be; then there is nothing at `output`.
    """
    with new_repository(output) as folder:
        check_repository(wan)
        transformer = empty_transformer(read_config(wan / "transformer"), wan / "transformer")
        entry, weights = generator(base, ema)
        fill(transformer, renamed(weights, name_of, base), base)
        adapter = read_lora(lora, transformer) if lora else None
        for part in PARTS:
            link(wan / part, folder / part)
        log("read", file=str(base), entry=entry)
        save(transformer, folder / "transformer")
        if adapter:
            save_file(adapter, folder / LORA)
        write_settings(folder, {"family": "longlive", "options": {"lora": LORA} if adapter else {}})


def check_repository(wan: Path) -> None:
    """Raise UsageError for a folder that is no whole Wan2.1 text-to-video repository."""
    missing = [part for part in (*PARTS, "transformer/config.json") if not (wan / part).exists()]
    if missing or detect(wan) is None:
        reason = f"has no {missing[0]}" if missing else "is of another model"
        raise UsageError(
            f"the repository {wan} {reason}", "give --wan a folder of Wan2.1 text to video in diffusers' layout"
        )


def generator(base: Path, ema: bool) -> tuple[str, Any]:
    """The generator's weights in a checkpoint, with the name of their entry.

    That is `generator`, which all published configs use, else the one that is there: `generator_ema` or `model`, which
    LongLive's own loader takes as well. With `ema` it is `generator_ema` and no other. Raises UsageError.
    """
    file = read_pickle(base)
    file = file if isinstance(file, Mapping) else {}
    entries = ("generator_ema",) if ema else ("generator", "generator_ema", "model")
    entry = next((entry for entry in entries if entry in file), None)
    if entry is None:
        raise UsageError(
            f"{base} has no {entries[0]} (it has {', '.join(map(str, file)) or 'nothing by name'})",
            "leave --ema out" if ema and file.keys() & {"generator", "model"} else "give longlive_base.pt",
        )
    return entry, file[entry]


def name_of(name: str) -> str:
    """The name in diffusers of a weight of the generator, which holds the transformer as its `model`."""
    return diffusers_name(name.removeprefix("model."))


def read_lora(path: Path, transformer: WanTransformer3DModel) -> Weights:
    """LoRA weights by diffusers' names: `MODULE.lora_A.weight` [rank, in] and `MODULE.lora_B.weight` [out, rank].

    Raises UsageError for a module that the transformer does not have, and for anything else than one rank.
    """
    file = read_pickle(path)
    file = file.get("generator_lora", file) if isinstance(file, Mapping) else file
    weights = renamed(file, lambda name: diffusers_name(name.removeprefix("base_model.model.")), path)
    if strange := [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise UsageError(f"{path} has {strange[0]}, which is neither lora_A nor lora_B", "give lora.pt, which has no others")
    of_transformer = dict(transformer.named_parameters())
    ranks = sorted({tensor.shape[0] for name, tensor in weights.items() if name.endswith(".lora_A.weight")})
    if len(ranks) != 1:
        raise UsageError(
            f"{path} has LoRA weights of rank {', '.join(map(str, ranks)) or 'none'}", "give lora.pt, which has one rank"
        )
    shapes = {}
    for name in weights:
        module = name.rpartition(".lora_")[0]
        weight = of_transformer.get(f"{module}.weight")
        if weight is None or weight.ndim != 2:
            raise UsageError(f"{path} has {name}, which is no linear layer's", "give the LoRA of this transformer")
        shapes[f"{module}.lora_A.weight"] = (ranks[0], weight.shape[1])
        shapes[f"{module}.lora_B.weight"] = (weight.shape[0], ranks[0])
    check(shapes, weights, path)
    return weights
