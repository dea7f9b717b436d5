"""Converts LongLive's published checkpoints, `longlive_base.pt` and `lora.pt`, to a repository in diffusers' layout.

The other components come from a Wan2.1 repository. LongLive's weights have the names and shapes of Wan2.1's: only the way in
which the model is run makes it causal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from stages.families.longlive.options import LORA_FILE, WAN_PARTS, ConvertOptions, converted_settings, detect
from stages.families.shared.convert import (
    Weights,
    check_shapes,
    fill,
    link,
    new_repository,
    read_pickle,
    rename_weights,
    save,
)
from stages.families.shared.model_index import read_config
from stages.families.shared.wan.names import diffusers_name
from stages.families.shared.wan.transformer import empty_transformer
from stages.runtime.errors import UsageError
from stages.runtime.log import log
from stages.runtime.model import write_settings

EMA = "generator_ema"  # the entry of the averaged weights in the checkpoint
PARTS = (*WAN_PARTS, "model_index.json")


def convert(options: ConvertOptions, output: Path) -> None:
    """Write a repository to `output`: the transformer of `base`, the rest of `wan`, and `lora` as lora.safetensors.

    Raises UsageError for files of another kind; `output` does not exist then.
    """
    base, wan = Path(options.base), Path(options.wan)
    with new_repository(output) as folder:
        check_repository(wan)
        transformer = empty_transformer(read_config(wan / "transformer"), wan / "transformer")
        entry, weights = read_generator(base, options.ema)
        fill(transformer, rename_weights(weights, name_of, base), base)
        adapter = read_lora(Path(options.lora), transformer) if options.lora else None
        for part in PARTS:
            link(wan / part, folder / part)
        log("read", file=str(base), entry=entry)
        save(transformer, folder / "transformer")
        if adapter:
            save_file(adapter, folder / LORA_FILE)
        write_settings(folder, {"family": "longlive", **converted_settings(options.values())})


def check_repository(wan: Path) -> None:
    """Raise UsageError for a folder that is not a complete Wan2.1 text-to-video repository."""
    missing = [part for part in (*PARTS, "transformer/config.json") if not (wan / part).exists()]
    if missing or detect(wan) is None:
        reason = f"has no {missing[0]}" if missing else "is of another model"
        raise UsageError(
            f"the repository {wan} {reason}", "give --wan a folder of Wan2.1 text to video in diffusers' layout"
        )


def read_generator(base: Path, ema: bool) -> tuple[str, Any]:
    """Read the generator's weights from a checkpoint. Returns the name of their entry in the file, and the weights.

    With `ema` the entry is `generator_ema`, the averaged weights. Without it, the entry is `generator`, which all published
    configs use, else `generator_ema` or `model`, which LongLive's own loader accepts too. Raises UsageError if there
    is none.
    """
    file = read_pickle(base)
    file = file if isinstance(file, Mapping) else {}
    entries = (EMA,) if ema else ("generator", EMA, "model")
    entry = next((entry for entry in entries if entry in file), None)
    if entry is None:
        raise UsageError(
            f"{base} has no {entries[0]} (it has {', '.join(map(str, file)) or 'nothing by name'})",
            "leave --ema out" if ema and file.keys() & {"generator", "model"} else "give longlive_base.pt",
        )
    return entry, file[entry]


def name_of(name: str) -> str:
    """The name in diffusers of a weight of the generator, in which the transformer is called `model`."""
    return diffusers_name(name.removeprefix("model."))


def read_lora(path: Path, transformer: WanTransformer3DModel) -> Weights:
    """Read LoRA weights under diffusers' names: `MODULE.lora_A.weight` [rank, in] and `MODULE.lora_B.weight` [out, rank].

    Raises UsageError for a module that the transformer does not have, and for layers of different ranks.
    """
    file = read_pickle(path)
    file = file.get("generator_lora", file) if isinstance(file, Mapping) else file
    weights = rename_weights(file, lambda name: diffusers_name(name.removeprefix("base_model.model.")), path)
    if others := [name for name in weights if not name.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise UsageError(f"{path} has {others[0]}, which is neither lora_A nor lora_B", "give lora.pt, which has no others")
    parameters = dict(transformer.named_parameters())
    ranks = sorted({tensor.shape[0] for name, tensor in weights.items() if name.endswith(".lora_A.weight")})
    if len(ranks) != 1:
        raise UsageError(
            f"{path} has LoRA weights of rank {', '.join(map(str, ranks)) or 'none'}", "give lora.pt, which has one rank"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name in weights:
        module = name.rpartition(".lora_")[0]
        weight = parameters.get(f"{module}.weight")
        if weight is None or weight.ndim != 2:
            raise UsageError(f"{path} has {name}, which is no linear layer's", "give the LoRA of this transformer")
        shapes[f"{module}.lora_A.weight"] = (ranks[0], weight.shape[1])
        shapes[f"{module}.lora_B.weight"] = (weight.shape[0], ranks[0])
    check_shapes(shapes, weights, path)
    return weights
