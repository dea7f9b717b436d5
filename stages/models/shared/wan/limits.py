"""What a Wan model can make, by the configs in its folder. Without torch: plans ask as the stages do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from stages.runtime.components import Broken, read_config

Fault = tuple[str, str]  # what a model cannot do, and the remedy


class Limits(NamedTuple):
    """`rows` of the rotary table, of which a patch takes one along each axis; `stride`, pixels of a patch's side; `tokens`
    of a text at most."""

    rows: int
    stride: int
    tokens: int


def limits(folder: Path) -> Limits:
    """Those of a repository; what its configs do not tell is as in the published models. Raises JobError."""
    patch = told(folder / "transformer/config.json", "patch_size", [1, 2, 2])
    return Limits(
        rows=told(folder / "transformer/config.json", "rope_max_seq_len", 1024),
        stride=told(folder / "vae/config.json", "scale_factor_spatial", 8) * patch[-1],
        tokens=told(folder / "tokenizer/tokenizer_config.json", "model_max_length", 512),
    )


def told(path: Path, name: str, otherwise: Any) -> Any:
    """A number of a config, or three of them; `otherwise` where the config does not tell. Raises JobError."""
    value = read_config(path).get(name, otherwise) if os.path.isfile(path) else otherwise
    numbers = value if isinstance(otherwise, list) and isinstance(value, list) else [value]
    many = len(otherwise) if isinstance(otherwise, list) else 1
    if len(numbers) != many or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise Broken(f"{path} says that {name} is {value!r}")
    return value


def size_beyond(size: tuple[int, int], limit: Limits) -> Fault | None:
    """Why a clip of `size` (width, height) cannot be made, if so."""
    said = f"size is {size[0]}*{size[1]}"
    if any(side % limit.stride for side in size):
        nearest = "*".join(str(max(1, round(side / limit.stride)) * limit.stride) for side in size)
        return f"{said} and both sides have to be multiples of {limit.stride}", f"take {nearest}"
    if max(size) > (largest := limit.rows * limit.stride):
        return (
            f"{said} and the rotary table of the transformer reaches to {largest} pixels",
            f"take at most {largest}*{largest}, or better a size that the model was trained on",
        )
    return None


def frames_beyond(latent_frames: int, limit: Limits) -> Fault | None:
    """Why so many latent frames cannot be made, if so; the first stands for one frame of the clip, each other for four."""
    if latent_frames > limit.rows:
        frames, most = 4 * latent_frames - 3, 4 * limit.rows - 3
        return (
            f"the clip has {frames} frames and the rotary table of the transformer reaches to {most}",
            f"take at most {most} ({limit.rows} latent frames)",
        )
    return None


def text_beyond(tokens: int, limit: Limits) -> Fault | None:
    """Why texts cannot be that long, if so."""
    if tokens > limit.tokens:
        return f"max_sequence_length is {tokens} and the tokenizer takes {limit.tokens}", f"take at most {limit.tokens}"
    return None
