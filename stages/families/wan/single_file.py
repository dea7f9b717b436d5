"""Reads a transformer from a single file in Wan's own names, as distilled and quantised weights are published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.families.shared.convert import Weights, read_pickle, rename_weights
from stages.families.shared.wan.names import PREFIXES, diffusers_name
from stages.runtime.errors import JobError, UsageError, one_line, shown

SCALES = (".weight_scale", ".scale_weight")  # of LightX2V, by row, and of ComfyUI: factors of the weights in 8 bits
MARKS = ("scaled_fp8",)  # tensors of ComfyUI's files that only say how they are quantised
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
COMPLETE = "give the complete file as it was published"


def read_single_file(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Weights:
    """Read weights under diffusers' names; quantised ones get the `dtype`, all others keep theirs.

    `shapes` are those of the transformer's parameters, for a file whose format has no more than four dimensions. Raises
    UsageError for a file that cannot be read or is of another format, JobError if the package `gguf` is missing.
    """
    if path.suffix == ".gguf":
        weights = read_gguf(path, dtype)
    elif path.suffix == ".safetensors":
        weights = dequantised(read_safetensors(path), path, dtype)
    elif path.suffix in (".pt", ".pth"):
        weights = read_pickle(path)
    else:
        raise UsageError(f"{path} is {path.suffix or 'a file without a suffix'}", "give .safetensors, .gguf, .pt or .pth")
    renamed = rename_weights(weights, lambda name: diffusers_name(PREFIXES.sub("", name)), path)
    return {name: unflattened(tensor, shapes.get(name, ())) for name, tensor in renamed.items()}


def unflattened(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of four dimensions or less in the `shape` of five that it was written from: that of the patch embedding."""
    fits = tensor.ndim < 5 == len(shape) and tensor.numel() == torch.Size(shape).numel()
    return tensor.reshape(shape) if fits else tensor


def read_safetensors(path: Path) -> Weights:
    """The tensors of a file. Raises UsageError."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read ({one_line(error)})", COMPLETE) from error


def dequantised(weights: Weights, path: Path, dtype: torch.dtype) -> Weights:
    """The weights, with those of 8 bits times their scale, computed in float32, in the `dtype`. Raises UsageError."""
    scales = {name.removesuffix(end): tensor for end in SCALES for name, tensor in weights.items() if name.endswith(end)}
    plain = {name: tensor for name, tensor in weights.items() if not name.endswith((*SCALES, *MARKS))}
    for name, tensor in plain.items():
        if tensor.dtype not in EIGHT_BITS:
            continue
        scale = scales.get(name.removesuffix(".weight"))
        if scale is None and tensor.dtype == torch.int8:
            raise UsageError(f"{path} has {shown(name)} of int8 without its scale", COMPLETE)
        try:
            plain[name] = (tensor.float() * (1.0 if scale is None else scale.float())).to(dtype)
        except RuntimeError as error:
            fault = f"a scale of {shown(name)} that does not fit ({one_line(error)})"
            raise UsageError(f"{path} has {fault}", COMPLETE) from error
    return plain


def read_gguf(path: Path, dtype: torch.dtype) -> Weights:
    """The tensors of a GGUF file, dequantised by the package `gguf` in float32. Those in float32, float16 and bfloat16 keep
    their precision; all others get the `dtype`. Raises UsageError, JobError."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        remedy = "install it: pip install 'kinemake[gguf]'"
        raise JobError(f"{path} needs gguf, which is not installed here", remedy) from error
    kinds = gguf.GGMLQuantizationType
    own = {kinds.F32: torch.float32, kinds.F16: torch.float16, kinds.BF16: torch.bfloat16}
    weights = {}
    try:
        for tensor in gguf.GGUFReader(path).tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[tensor.name] = torch.tensor(values, dtype=torch.float32).to(own.get(tensor.tensor_type, dtype))
    except Exception as error:  # the package raises any exception for a damaged file
        raise UsageError(f"{path} cannot be read as GGUF ({one_line(error)})", COMPLETE) from error
    return weights
