"""Merges LoRA files (arXiv:2106.09685), with the tensor names of the usual trainers, into a transformer's weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from stages.families.shared.wan.names import PREFIXES, diffusers_name
from stages.runtime.errors import ItemError, one_line, shown
from stages.runtime.log import log

# kohya's and musubi's names are Wan's own or those of diffusers, with underscores for dots.
FLAT = re.compile(r"^lora_(?:unet|transformer)_(?=[a-z])")
WORDS = re.compile(  # of such a name: those that have an underscore themselves, then all others
    r"(?:(?:self|cross)_attn|norm_(?:q|k)(?:_img)?|(?:k|v)_img|img_emb|(?:time|text|patch)_embedding|time_projection"
    r"|condition_embedder|(?:time|text|image)_embedder|time_proj|linear_\d|to_(?:q|k|v|out)|add_(?:k|v)_proj"
    r"|norm_added_(?:q|k)|proj_out)(?=_|$)|[^_]+"
)
# Endings of a tensor's name, by its role. PEFT and DiffSynth may add the name of an adapter after lora_A and lora_B.
ENDINGS = {
    "down": r"\.lora_A(\.\w+)?\.weight|\.lora_down\.weight|\.lora\.down\.weight",
    "up": r"\.lora_B(\.\w+)?\.weight|\.lora_up\.weight|\.lora\.up\.weight",
    "up_bias": r"\.lora_B(\.\w+)?\.bias|\.lora_up\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"\.diff_m",
}
DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}  # full differences of these parameters of a layer
OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT"}
CONFIG = "lora_adapter_metadata"  # entry of the header in which diffusers keeps the config of PEFT
ALPHA, KOHYAS_ALPHA = "lora_alpha", "ss_network_alpha"  # entries in which trainers state the alpha of all layers
OTHER_LORA = "give a LoRA that was trained for this model"
CPU = torch.device("cpu")
FLOATS = (  # what torch converts to float32
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
)


@dataclass(frozen=True)
class Lora:
    """A LoRA file with its strength. `alpha` is that of layers for which the file states none; None: their rank."""

    path: Path
    scale: float = 1.0
    alpha: float | None = None


def loras_of(paths: Sequence[str], scales: Sequence[float], alpha: float | None = None) -> list[Lora]:
    """LoRA files with the strengths of options lora_scale: one for each, or one for all."""
    return [Lora(Path(path), scale, alpha) for path, scale in zip(paths, scales if scales[1:] else [*scales] * len(paths))]


@dataclass(frozen=True)
class Addition:
    """`factor` times a tensor, or times the product of two, to add to a parameter. `key` is the name of one in the file.

    The two are [out, rank] and [rank, in]; of a convolution [out, rank, 1, ...] and [rank, in, *kernel].
    """

    parameter: str
    factor: float
    tensors: tuple[torch.Tensor, ...]
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        first, *others = self.tensors
        return (first.shape[0], *others[0].shape[1:]) if others else tuple(first.shape)

    def value(self, device: torch.device, scale: float) -> torch.Tensor:
        """`scale` times the tensor to add, in float32 on a device."""
        first, *others = (tensor.to(device).float() for tensor in self.tensors)
        product = (first.flatten(1) @ others[0].flatten(1)).view(self.shape) if others else first.clone()
        return product.mul_(self.factor).mul_(scale)


@torch.no_grad()
def merge(transformer: nn.Module, loras: Sequence[Lora], device: torch.device = CPU) -> None:
    """Add LoRA files to a transformer's parameters.

    All that is added to a parameter is summed in float32, in the order of the files, the parameter last. The sum is rounded
    once, to the precision of the parameter.

    Args:
        device: where the sums are computed, layer by layer. The parameters stay where they are. A GPU may round the last bit
            of a sum otherwise than a CPU.

    Raises:
        ItemError: a tensor of a file cannot be applied; the transformer is unchanged. Or a sum overflows the precision of
            a parameter; the transformer is unusable then.
    """
    parameters = dict(transformer.named_parameters())
    by_parameter: dict[str, list[tuple[Lora, Addition]]] = {}
    for lora in loras:
        for name, addition in fitting_additions(parameters, lora).items():
            by_parameter.setdefault(name, []).append((lora, addition))
    for name, additions in by_parameter.items():
        merged = added_to(parameters[name].to(device), additions)
        if not torch.stack(merged.aminmax()).isfinite().all():  # without the temporary tensors of isfinite
            lora, addition = additions[-1]
            makes = f"{'with the files before it ' if len(additions) > 1 else ''}makes {name} infinite or NaN"
            raise ItemError(f"{lora.path} {makes} ({shown(addition.key)})", "give another LoRA, or lower its scale")
        parameters[name].copy_(merged)


def added_to(weight: torch.Tensor, additions: Sequence[tuple[Lora, Addition]]) -> torch.Tensor:
    """`weight` plus all that is to be added to it, summed in float32 where the weight is, in the weight's precision.

    In place, because new memory takes longer than the arithmetic.
    """
    (lora, first), *others = additions
    total = first.value(weight.device, lora.scale)
    for lora, addition in others:
        total.add_(addition.value(weight.device, lora.scale))
    return total.add_(weight).to(weight.dtype)


def fitting_additions(parameters: Mapping[str, torch.Tensor], lora: Lora) -> dict[str, Addition]:
    """The additions of a file by the parameter that each changes, once. Raises ItemError for one that does not fit."""
    path = lora.path
    additions: dict[str, Addition] = {}
    for addition in read_additions(path, lora.alpha):
        name, shape = addition.parameter, addition.shape
        if name not in parameters:
            lacking = f"{shown(name)}, which this transformer does not have ({shown(addition.key)})"
            raise ItemError(f"{path} changes {lacking}", OTHER_LORA)
        if parameters[name].shape != shape:
            has = f"{list(shape)} for {name}, which is {list(parameters[name].shape)}"
            raise ItemError(f"{path} does not fit this transformer ({shown(addition.key)} gives {has})", OTHER_LORA)
        if name in additions:
            twice = f"{name} twice ({shown(addition.key)}, {shown(additions[name].key)})"
            raise ItemError(f"{path} changes {twice}", "give it once")
        additions[name] = addition
    return additions


def read_additions(path: Path, alpha: float | None) -> list[Addition]:
    """Read the additions of a safetensors file, with diffusers' names of the parameters. Raises ItemError."""
    tensors, header = read_tensors(path)
    layers: dict[str, dict[str, str]] = {}
    for key, tensor in tensors.items():
        layer, role = layer_and_role(key, path)
        check_numbers(key, role, tensor, path)
        if role in layers.setdefault(layer, {}):
            raise ItemError(
                f"{path} has {shown(key)} and {shown(layers[layer][role])}, which are the same tensor", "give it once"
            )
        layers[layer][role] = key
    config = config_of_peft(header, path)
    if "lora_alpha" not in config and any("down" in keys and "alpha" not in keys for keys in layers.values()):
        alpha = alpha_of_all(header, tensors, path, alpha)
    additions = []
    for layer, keys in layers.items():
        by_role = {role: tensors[key] for role, key in keys.items()}
        if keys.keys() - DIFFERENCES.keys():
            factor = factor_of(layer, keys, by_role, config, alpha, path)
            pair = by_role["up"], by_role["down"]
            additions.append(Addition(diffusers_name(f"{layer}.weight"), factor, pair, keys["up"]))
            if "up_bias" in keys:
                bias = (by_role["up_bias"],)
                additions.append(Addition(diffusers_name(f"{layer}.bias"), factor, bias, keys["up_bias"]))
        for role in keys.keys() & DIFFERENCES.keys():
            parameter = diffusers_name(f"{layer}.{DIFFERENCES[role]}")
            additions.append(Addition(parameter, 1.0, (by_role[role],), keys[role]))
    return additions


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """Read the tensors and the metadata of a file. Raises ItemError."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        if not tensors:
            raise ValueError("it has no tensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise not_a_lora(path, error) from error
    return tensors, header


def not_a_lora(path: Path, error: Exception) -> ItemError:
    return ItemError(f"{path} is not a LoRA of Wan ({one_line(error)})", "give a LoRA in safetensors format")


def config_of_peft(header: Mapping[str, str], path: Path) -> Mapping[str, Any]:
    """The config of PEFT in a header; empty if there is none. Raises ItemError."""
    try:
        config = json.loads(header.get(CONFIG, "{}"))
        if not isinstance(config, dict):
            raise ValueError(f"its {CONFIG} is no object")
    except (ValueError, RecursionError) as error:
        raise not_a_lora(path, error) from error
    return {name.removeprefix("transformer."): value for name, value in config.items()}


def alpha_of_all(
    header: Mapping[str, str], tensors: Mapping[str, torch.Tensor], path: Path, default: float | None
) -> float | None:
    """The alpha that a header states for all layers, else the default. Raises ItemError if it is no number.

    `ss_network_alpha`, by kohya's trainers, is used only with kohya's own tensor names: musubi-tuner's convert_lora.py
    renames the tensors, multiplies alpha into them, and leaves this entry in the header.
    """
    name = ALPHA if ALPHA in header else KOHYAS_ALPHA
    if name not in header:
        warn_of_config(path)
        return default
    if name == KOHYAS_ALPHA and not all(key.startswith("lora_unet_") for key in tensors):
        reason = (
            f"{name} {shown(header[name])} is not applied: the program that renamed these matrices multiplied it into them"
        )
        log("warning", file=str(path), reason=f"{reason}; if it did not, set the strength by an option")
        return default
    try:
        if not math.isfinite(alpha := float(header[name])):
            raise ValueError
    except ValueError:
        raise ItemError(f"{path} states {name} {shown(header[name])}, which is no number", OTHER_LORA) from None
    return alpha


def check_numbers(key: str, role: str, tensor: torch.Tensor, path: Path) -> None:
    """Raise ItemError for a tensor that is empty or not of finite floating point numbers; an alpha may be an integer."""
    called = f"{path} has {shown(key)} of {str(tensor.dtype).removeprefix('torch.')}"
    is_whole = not tensor.is_floating_point() and not tensor.is_complex()
    if tensor.dtype not in FLOATS and not (role == "alpha" and is_whole):
        raise ItemError(f"{called}, and a LoRA has floating point numbers of 8 to 64 bits", "give it as it was trained")
    if not tensor.numel():
        raise ItemError(f"{path} has {shown(key)} of shape {list(tensor.shape)}, which is empty", "give the complete file")
    if not tensor.float().isfinite().all():
        raise ItemError(f"{called}, with numbers that are infinite or NaN", "give another LoRA")


def layer_and_role(key: str, path: Path) -> tuple[str, str]:
    """The layer that a tensor belongs to, with dots in its name, and its role. Raises ItemError for an unknown role."""
    for role, ending in ENDINGS.items():
        if match := re.search(f"(?:{ending})$", key):
            layer = key[: match.start()]
            flat = FLAT.match(layer)
            return ".".join(WORDS.findall(layer[flat.end() :])) if flat else PREFIXES.sub("", layer), role
    kind = next((name for part, name in OTHER_KINDS.items() if part in key), "")
    reason = f"a weight of kind {kind}, which is not applied yet" if kind else "of a kind of LoRA that is not known here"
    raise ItemError(f"{path} has {shown(key)}, {reason}", "give a LoRA of lora_A and lora_B, or lora_down and lora_up")


def factor_of(
    layer: str,
    keys: Mapping[str, str],
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    alpha: float | None,
    path: Path,
) -> float:
    """Alpha / rank of a layer. Alpha is the layer's own, else PEFT's, else `alpha`, else the rank. Raises ItemError."""
    if missing := [role for role in ("down", "up") if role not in tensors]:
        key = shown(next(iter(keys.values())))
        raise ItemError(f"{path} has {key} without its {missing[0]} matrix", "give the complete file")
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0] if down.ndim >= 2 else 0
    if up.ndim != down.ndim or not rank or tuple(up.shape[1:]) != (rank, *[1] * (down.ndim - 2)):
        shapes = f"{shown(keys['up'])} is {list(up.shape)} and {shown(keys['down'])} {list(down.shape)}"
        raise ItemError(f"{path} has matrices that do not make a LoRA of a layer ({shapes})", OTHER_LORA)
    try:
        if "alpha" in tensors:
            factor = float(tensors["alpha"]) / rank
        elif "lora_alpha" in config:
            stated = int(pattern_value(config.get("rank_pattern"), layer, config.get("r", rank)))
            if stated != rank:
                raise ValueError(f"r is {stated} and {shown(keys['down'])} has rank {rank}")
            stated_alpha = float(pattern_value(config.get("alpha_pattern"), layer, config["lora_alpha"]))
            if not isinstance(stabilised := config.get("use_rslora", False), bool):
                raise ValueError(f"use_rslora is {shown(stabilised)}")
            factor = stated_alpha / (math.sqrt(rank) if stabilised else rank)
        else:
            factor = 1.0 if alpha is None else alpha / rank
        if not math.isfinite(factor):
            raise ValueError(f"alpha / rank is {factor}")
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        fault = f"no alpha of {shown(layer)} that can be used ({one_line(error)})"
        raise ItemError(f"{path} states {fault}", OTHER_LORA) from error
    return factor


def pattern_value(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """The value of the first entry that matches a layer: it equals the end of its name, or with ".*" the start of an end.

    PEFT reads an entry as a regular expression. A file could hold one that never ends, so entries are compared as text.
    Raises ValueError for any other expression.
    """
    for entry, value in (pattern or {}).items():
        begun = entry.removeprefix("^").removesuffix("$")
        name = begun.removesuffix(".*").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", name):
            raise ValueError(f"the entry {shown(entry)} of a pattern is no layer's name")
        if f".{layer}".endswith(f".{name}") or (begun.endswith(".*") and f".{name}" in f".{layer}"):
            return value
    return default


def warn_of_config(path: Path) -> None:
    """Log that the alpha in PEFT's adapter_config.json is ignored: the digest of an item covers the LoRA file alone."""
    config = path.with_name("adapter_config.json")
    if config.is_file():
        reason = f"{config.name} beside it is not read: if alpha is not the rank, set the strength by an option"
        log("warning", file=str(path), reason=reason)
