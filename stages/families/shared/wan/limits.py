"""The limits of a Wan model, read from the configs in its folder. Imports no torch, since the plan checks them too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from stages.runtime.components import Broken, read_config
from stages.runtime.sizes import not_multiple

Fault = tuple[str, str]  # reason and remedy


class Limits(NamedTuple):
    """Limits of a model.

    Attributes:
        rows: rows of the rotary table; along each axis a patch takes one.
        stride: side of a patch in pixels.
        tokens: maximum length of a text.
    """

    rows: int
    stride: int
    tokens: int


def limits(folder: Path) -> Limits:
    """The limits of a repository; entries that its configs lack are those of the published models. Raises JobError."""
    patch = read_config_numbers(folder / "transformer/config.json", "patch_size", [1, 2, 2])
    return Limits(
        rows=read_config_numbers(folder / "transformer/config.json", "rope_max_seq_len", 1024),
        stride=read_config_numbers(folder / "vae/config.json", "scale_factor_spatial", 8) * patch[-1],
        tokens=read_config_numbers(folder / "tokenizer/tokenizer_config.json", "model_max_length", 512),
    )


def read_config_numbers(path: Path, name: str, otherwise: Any) -> Any:
    """Read a positive integer, or a list as long as `otherwise`, from a config; `otherwise` if absent. Raises JobError."""
    value = read_config(path).get(name, otherwise) if os.path.isfile(path) else otherwise
    numbers = value if isinstance(otherwise, list) and isinstance(value, list) else [value]
    many = len(otherwise) if isinstance(otherwise, list) else 1
    if len(numbers) != many or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise Broken(f"{name} is {value!r} in {path}")
    return value


def size_fault(size: tuple[int, int], limit: Limits) -> Fault | None:
    """The fault of a `size` (width, height in pixels) that exceeds the limits; None if it does not."""
    if fault := not_multiple(size, limit.stride):
        return fault
    if max(size) > (largest := limit.rows * limit.stride):
        return (
            f"size is {size[0]}*{size[1]} and the rotary table of the transformer reaches to {largest} pixels",
            f"take at most {largest}*{largest}, or better a size that the model was trained on",
        )
    return None


def frames_fault(latent_frames: int, limit: Limits) -> Fault | None:
    """The fault of too many latent frames. The first latent frame stands for one frame of the clip, the others for four."""
    if latent_frames > limit.rows:
        frames, most = 4 * latent_frames - 3, 4 * limit.rows - 3
        return (
            f"the clip has {frames} frames and the rotary table of the transformer reaches to {most}",
            f"take at most {most} ({limit.rows} latent frames)",
        )
    return None


def text_fault(tokens: int, limit: Limits) -> Fault | None:
    """The fault of a text that is longer than the tokenizer allows; None if it is not."""
    if tokens > limit.tokens:
        return f"max_sequence_length is {tokens} and the tokenizer takes {limit.tokens}", f"take at most {limit.tokens}"
    return None
