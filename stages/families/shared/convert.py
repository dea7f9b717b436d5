"""Converts published checkpoints to a repository in diffusers' layout: all weights are checked, and written atomically."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.runtime.errors import JobError, UsageError, one_line
from stages.runtime.files import set_default_permissions
from stages.runtime.log import log
from stages.runtime.store import place

Weights = dict[str, torch.Tensor]


@contextmanager
def new_repository(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` to write to. It is renamed to `output` at the end, and removed after an error.

    `output` does not exist before. Raises JobError if it cannot be written.
    """
    folder = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        set_default_permissions(folder)
        folder.rename(output)
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"{output} cannot be written ({one_line(error)})", "make room there, or give another --output"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_pickle(path: Path) -> Any:
    """Read a file of torch.save: tensors and plain values. The tensors are memory-mapped.

    Raises UsageError for a file that cannot be read or that holds code.
    """
    try:
        # files older than torch 1.6 are no zip files and cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # a truncated pickle raises anything, and torch advises to run its code
        reason = "it is not one, or it holds code" if isinstance(error, UnpicklingError) else one_line(error)
        raise UsageError(
            f"{path} cannot be read as a checkpoint of torch ({reason})", "give the complete file as it was published"
        ) from error


def read_shards(folder: Path) -> Weights:
    """Read the weights of all safetensors files in a folder. Raises UsageError if there are none."""
    weights: Weights = {}
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UsageError(f"{folder} has no .safetensors files", "give the complete folder as it was published")
    for path in paths:
        try:
            weights |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path} cannot be read ({one_line(error)})", "fetch it again") from error
    return weights


def rename_weights(weights: Any, name_of: Callable[[str], str], source: Path) -> Weights:
    """Give a checkpoint's weights the names that `name_of` returns.

    A tensor that is not contiguous or that shares its memory is copied, as safetensors requires. Raises UsageError if the
    weights are not floating point tensors by name, or if two get the same name.
    """
    pairs = list(weights.items()) if isinstance(weights, Mapping) else [("", weights)]
    if not all(isinstance(name, str) and is_dense(tensor) for name, tensor in pairs):
        raise UsageError(f"{source} holds something other than weights by name", "give the checkpoint that was published")
    named: Weights = {}
    for name, tensor in weights.items():
        if (new := name_of(name)) in named:
            raise UsageError(f"{source} has the weight {new} twice", "give the checkpoint that was published")
        owns_memory = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        named[new] = tensor if owns_memory else tensor.clone(memory_format=torch.contiguous_format)
    return named


def is_dense(tensor: Any) -> bool:
    """Whether a value is a dense tensor of floating point numbers."""
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.layout == torch.strided


def fill(model: torch.nn.Module, weights: Weights, source: Path) -> None:
    """Load weights into a model on the meta device, in their own precision and without a copy.

    Raises UsageError for weights of another architecture.
    """
    check_shapes({name: parameter.shape for name, parameter in model.named_parameters()}, weights, source)
    # not strict: a state dict names a tied weight twice; the check above is strict
    model.load_state_dict(weights, strict=False, assign=True)


def check_shapes(shapes: Mapping[str, tuple[int, ...]], weights: Weights, source: Path) -> None:
    """Raise UsageError if a weight is missing, unexpected or not of its shape in `shapes`; the message names the first."""
    missing = [name for name in shapes if name not in weights]
    unexpected = [name for name in weights if name not in shapes]
    misshapen = [
        f"{name} is {list(weights[name].shape)} and not {list(shape)}"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    faults = [f"{len(names)} {fault}, the first: {names[0]}" for fault, names in found.items() if names]
    if faults:
        raise UsageError(
            f"the weights of {source} are not the {len(shapes)} of this architecture ({'; '.join(faults)})",
            "give the complete checkpoint that belongs to it",
        )


def save(model: Any, folder: Path) -> None:
    """Write a model of diffusers or transformers as safetensors, with its config."""
    log("write", component=folder.name, weights=len(list(model.parameters())), dtype=str(model.dtype).removeprefix("torch."))
    model.save_pretrained(folder)


def link(source: Path, target: Path) -> None:
    """Hard-link a file, or all files of a folder, to `target`; across file systems copy them."""
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file():  # resolved: the hub's cache consists of symbolic links
            place(path.resolve(), target / path.relative_to(source), linked=True)
