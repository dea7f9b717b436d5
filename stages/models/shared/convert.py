"""From published checkpoints to a repository in diffusers' layout: strictly, and whole or not at all."""

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
from stages.runtime.log import log
from stages.runtime.store import place

Weights = dict[str, torch.Tensor]


@contextmanager
def new_repository(output: Path) -> Iterator[Path]:
    """A folder beside `output` to write to. It takes that name at the end, and goes after an error.

    Raises UsageError where `output` exists, JobError where the disk does not take it.
    """
    if os.path.exists(output):
        raise UsageError(f"the output {output} exists", "remove it, or give another --output")
    folder = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(output)
    except (OSError, SafetensorError) as error:
        raise JobError(
            f"{output} cannot be written ({one_line(error)})", "make room there, or give another --output"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_pickle(path: Path) -> Any:
    """What torch.save wrote: tensors, and plain values around them. The tensors stay on the disk until they are used.

    Raises UsageError for a file that cannot be read or holds code.
    """
    try:
        # files older than torch 1.6 are no zip files and cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # a torn pickle fails in any way; torch's own advice would be to run the code in it
        reason = "it is none, or holds code" if isinstance(error, UnpicklingError) else one_line(error)
        raise UsageError(
            f"{path} cannot be read as a checkpoint of torch ({reason})", "give the file that was published, whole"
        ) from error


def read_shards(folder: Path) -> Weights:
    """The weights of all safetensors files that lie in a folder. Raises UsageError."""
    weights: Weights = {}
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UsageError(f"{folder} has no .safetensors files", "give the folder that was published, whole")
    for path in paths:
        try:
            weights |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{path} cannot be read ({one_line(error)})", "fetch it again") from error
    return weights


def renamed(weights: Any, name_of: Callable[[str], str], source: Path) -> Weights:
    """A checkpoint's weights by the names that `name_of` gives. Raises UsageError where they are not one tensor a name.

    Each has its memory to itself, in order, as safetensors wants it: those that do not are copied.
    """
    pairs = list(weights.items()) if isinstance(weights, Mapping) else [("", weights)]
    if not all(isinstance(name, str) and is_dense(tensor) for name, tensor in pairs):
        raise UsageError(f"{source} has something else than weights by name", "give the checkpoint that was published")
    named: Weights = {}
    for name, tensor in weights.items():
        if (new := name_of(name)) in named:
            raise UsageError(f"{source} has the weight {new} twice", "give the checkpoint that was published")
        alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        named[new] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
    return named


def is_dense(tensor: Any) -> bool:
    """Whether a value is a tensor of floating point numbers, with all of them in memory."""
    return isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.layout == torch.strided


def fill(model: torch.nn.Module, weights: Weights, source: Path) -> None:
    """Give an empty model its weights, in their own precision and uncopied. Raises UsageError for weights of another."""
    check({name: parameter.shape for name, parameter in model.named_parameters()}, weights, source)
    # not strict, since a state dict names a tied weight twice: the check above is
    model.load_state_dict(weights, strict=False, assign=True)


def check(shapes: Mapping[str, torch.Size], weights: Weights, source: Path) -> None:
    """Raise UsageError that names the first weight that is missing, unexpected or of another shape than in `shapes`."""
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
            "give the checkpoint that goes with it, whole",
        )


def save(model: Any, folder: Path) -> None:
    """Write a model of diffusers or transformers in safetensors, with its config."""
    log("write", component=folder.name, weights=len(list(model.parameters())), dtype=str(model.dtype).removeprefix("torch."))
    model.save_pretrained(folder)


def link(source: Path, target: Path) -> None:
    """Put a file, or all files of a folder, at `target` too: as hard links, copied across file systems."""
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file():  # resolved, since a folder of the model hub's cache has symbolic links
            place(path.resolve(), target / path.relative_to(source), linked=True)
