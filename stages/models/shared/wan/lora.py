"""A LoRA file, under the names of the usual trainers, merged into a transformer's weights once (arXiv:2106.09685)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from stages.models.shared.wan.names import diffusers_name
from stages.runtime.errors import ItemError, one_line, shown
from stages.runtime.log import log

# What may stand before a layer's name: of PEFT, diffusers, ComfyUI and DiffSynth.
PREFIXES = re.compile(r"^(?:(?:base_model\.model|transformer|(?:model\.)?diffusion_model|pipe\.dit)\.)*")
# kohya's and musubi's names are Wan's own, with underscores for dots.
FLAT = re.compile(
    r"^lora_unet_(?:(blocks)_(\d+)_)?(self_attn|cross_attn|ffn|time_embedding|time_projection|text_embedding|head)_(\w+)$"
)
# How a tensor's name ends, by its role. PEFT and DiffSynth may put an adapter's name behind lora_A and lora_B.
ENDINGS = {
    "down": r"\.lora_A(\.\w+)?\.weight|\.lora_down\.weight|\.lora\.down\.weight",
    "up": r"\.lora_B(\.\w+)?\.weight|\.lora_up\.weight|\.lora\.up\.weight",
    "up_bias": r"\.lora_B(\.\w+)?\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"\.diff_m",
}
DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}  # whole, of these parameters of a layer
OTHER_KINDS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT"}
CONFIG = "lora_adapter_metadata"  # entry of the header in which diffusers keeps the config of PEFT
ALPHA, KOHYAS_ALPHA = "lora_alpha", "ss_network_alpha"  # entries in which trainers state the alpha of all layers
ANOTHER = "give a LoRA that was trained for this model"
FLOATS = (  # what torch converts to float32
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
)


@dataclass(frozen=True)
class Addition:
    """`factor` times a tensor, or times the product of two, for a parameter; `key` is the name of one in the file."""

    parameter: str
    factor: float
    tensors: tuple[torch.Tensor, ...]
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        first, *others = self.tensors
        return (first.shape[0], others[0].shape[1]) if others else tuple(first.shape)

    def value(self) -> torch.Tensor:
        first, *others = (tensor.float() for tensor in self.tensors)
        return self.factor * (first @ others[0] if others else first)


@torch.no_grad()
def merge(transformer: nn.Module, path: Path, scale: float = 1.0, alpha: float | None = None) -> None:
    """Add `scale` times what a LoRA file says to a transformer's parameters, computed in float32.

    `alpha` is that of layers for which the file states none; None: their rank. Raises ItemError that names one tensor of the
    file, before anything is changed, if there is one that cannot be applied. That a sum is beyond the numbers of a parameter
    is found as it is made: the transformer is of no use then.
    """
    parameters = dict(transformer.named_parameters())
    additions: dict[str, Addition] = {}
    for addition in read_additions(path, alpha):
        name, shape = addition.parameter, addition.shape
        if name not in parameters:
            lacking = f"{shown(name)}, which this transformer does not have ({shown(addition.key)})"
            raise ItemError(f"{path} changes {lacking}", ANOTHER)
        if parameters[name].shape != shape:
            has = f"{list(shape)} for {name}, which is {list(parameters[name].shape)}"
            raise ItemError(f"{path} does not fit this transformer ({shown(addition.key)} gives {has})", ANOTHER)
        if name in additions:
            twice = f"{name} twice ({shown(addition.key)}, {shown(additions[name].key)})"
            raise ItemError(f"{path} changes {twice}", "give it once")
        additions[name] = addition
    for name, addition in additions.items():
        merged = (parameters[name].float() + scale * addition.value()).to(parameters[name].dtype)
        if not merged.isfinite().all():
            makes = f"makes {name} infinite or NaN ({shown(addition.key)})"
            raise ItemError(f"{path} {makes}", "give another LoRA, or lower its scale")
        parameters[name].copy_(merged)


def read_additions(path: Path, alpha: float | None) -> list[Addition]:
    """What a safetensors file adds to which parameter, by diffusers' names. Raises ItemError."""
    tensors, header = read(path)
    layers: dict[str, dict[str, str]] = {}
    for key, tensor in tensors.items():
        layer, role = layer_and_role(key, path)
        check_numbers(key, role, tensor, path)
        if role in layers.setdefault(layer, {}):
            raise ItemError(f"{path} has {shown(key)} and {shown(layers[layer][role])}, which are one", "give it once")
        layers[layer][role] = key
    config = config_of_peft(header, path)
    if "lora_alpha" not in config and any("down" in keys and "alpha" not in keys for keys in layers.values()):
        alpha = alpha_of_all(header, tensors, path, alpha)
    additions = []
    for layer, keys in layers.items():
        of_role = {role: tensors[key] for role, key in keys.items()}
        if keys.keys() - DIFFERENCES.keys():
            factor = factor_of(layer, keys, of_role, config, alpha, path)
            pair = of_role["up"], of_role["down"]
            additions.append(Addition(diffusers_name(f"{layer}.weight"), factor, pair, keys["up"]))
            if "up_bias" in keys:
                bias = (of_role["up_bias"],)
                additions.append(Addition(diffusers_name(f"{layer}.bias"), factor, bias, keys["up_bias"]))
        for role in keys.keys() & DIFFERENCES.keys():
            parameter = diffusers_name(f"{layer}.{DIFFERENCES[role]}")
            additions.append(Addition(parameter, 1.0, (of_role[role],), keys[role]))
    return additions


def read(path: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors of a file, and what its header says beside them. Raises ItemError."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        if not tensors:
            raise ValueError("it has no tensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise no_lora(path, error) from error
    return tensors, header


def no_lora(path: Path, error: Exception) -> ItemError:
    return ItemError(f"{path} is not a LoRA of Wan ({one_line(error)})", "give a LoRA in safetensors format")


def config_of_peft(header: Mapping[str, str], path: Path) -> Mapping[str, Any]:
    """The config of PEFT in a header, empty where there is none. Raises ItemError."""
    try:
        config = json.loads(header.get(CONFIG, "{}"))
        if not isinstance(config, dict):
            raise ValueError(f"its {CONFIG} is no object")
    except (ValueError, RecursionError) as error:
        raise no_lora(path, error) from error
    return {name.removeprefix("transformer."): value for name, value in config.items()}


def alpha_of_all(
    header: Mapping[str, str], tensors: Mapping[str, torch.Tensor], path: Path, default: float | None
) -> float | None:
    """The alpha that a header states in plain text for all layers, else the default. Raises ItemError where it is no number.

    `ss_network_alpha`, by kohya's trainers, is used only with kohya's own tensor names: musubi-tuner's convert_lora.py
    renames the tensors, multiplies alpha into them, and leaves this entry in the header.
    """
    name = ALPHA if ALPHA in header else KOHYAS_ALPHA
    if name not in header:
        warn_of_config(path)
        return default
    if name == KOHYAS_ALPHA and not all(key.startswith("lora_unet_") for key in tensors):
        reason = f"{name} {shown(header[name])} is not applied again: what renamed these matrices multiplied it into them"
        log("warning", file=str(path), reason=f"{reason}; where that was not done, set the strength by an option")
        return default
    try:
        if not math.isfinite(alpha := float(header[name])):
            raise ValueError
    except ValueError:
        raise ItemError(f"{path} states {name} {shown(header[name])}, which is no number", ANOTHER) from None
    return alpha


def check_numbers(key: str, role: str, tensor: torch.Tensor, path: Path) -> None:
    """Raise ItemError for a tensor that is not of finite floating point numbers; an alpha may be a whole number."""
    called = f"{path} has {shown(key)} of {str(tensor.dtype).removeprefix('torch.')}"
    is_whole = not tensor.is_floating_point() and not tensor.is_complex()
    if tensor.dtype not in FLOATS and not (role == "alpha" and is_whole):
        raise ItemError(f"{called}, and a LoRA has floating point numbers of 8 to 64 bits", "give it as it was trained")
    if not tensor.numel():
        raise ItemError(f"{path} has {shown(key)} of shape {list(tensor.shape)}, which holds nothing", "give the file whole")
    if not tensor.float().isfinite().all():
        raise ItemError(f"{called}, with numbers that are infinite or NaN", "give another LoRA")


def layer_and_role(key: str, path: Path) -> tuple[str, str]:
    """The layer that a tensor of a LoRA belongs to, in dotted names, and its role. Raises ItemError for another kind."""
    for role, ending in ENDINGS.items():
        if match := re.search(f"(?:{ending})$", key):
            layer = key[: match.start()]
            flat = FLAT.match(layer)
            return ".".join(filter(None, flat.groups())) if flat else PREFIXES.sub("", layer), role
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
    """Alpha / rank of a layer: of its own alpha, else of PEFT's config, else of `alpha`, else 1. Raises ItemError."""
    if missing := [role for role in ("down", "up") if role not in tensors]:
        key = shown(next(iter(keys.values())))
        raise ItemError(f"{path} has {key} without its {missing[0]} matrix", "give the file whole")
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0] if down.ndim == 2 else 0
    if up.ndim != 2 or not rank or up.shape[1] != rank:
        shapes = f"{shown(keys['up'])} is {list(up.shape)} and {shown(keys['down'])} {list(down.shape)}"
        raise ItemError(f"{path} has matrices that do not make a LoRA of a linear layer ({shapes})", ANOTHER)
    try:
        if "alpha" in tensors:
            factor = float(tensors["alpha"]) / rank
        elif "lora_alpha" in config:
            stated = int(of_layer(config.get("rank_pattern"), layer, config.get("r", rank)))
            if stated != rank:
                raise ValueError(f"r is {stated} and {shown(keys['down'])} has rank {rank}")
            stated_alpha = float(of_layer(config.get("alpha_pattern"), layer, config["lora_alpha"]))
            if not isinstance(stabilised := config.get("use_rslora", False), bool):
                raise ValueError(f"use_rslora is {shown(stabilised)}")
            factor = stated_alpha / (math.sqrt(rank) if stabilised else rank)
        else:
            factor = 1.0 if alpha is None else alpha / rank
        if not math.isfinite(factor):
            raise ValueError(f"alpha / rank is {factor}")
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        said = f"no alpha of {shown(layer)} that can be used ({one_line(error)})"
        raise ItemError(f"{path} states {said}", ANOTHER) from error
    return factor


def of_layer(pattern: Mapping[str, Any] | None, layer: str, default: Any) -> Any:
    """The value of the first entry that is a layer's name or the end of it, or, with ".*" behind it, begins such an end.

    PEFT takes an entry for a regular expression. One that came with a file could run for ever, so it is compared as text.
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
    """Log that the alpha which PEFT keeps beside its weights does not count: results are known by the digest of one file."""
    config = path.with_name("adapter_config.json")
    if config.is_file():
        reason = f"{config.name} beside it is not read: where alpha is not the rank, set the strength by an option"
        log("warning", file=str(path), reason=reason)
