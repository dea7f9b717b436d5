"""The further condition of a U-Net with `condition_dim`: a vector per clip, in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.runtime.errors import ItemError, KinemakeError, one_line
from stages.runtime.text import read_text

REMEDY = "give a JSON list of numbers, a .npy file, or a .safetensors file with one tensor"


def read_condition(path: Path) -> torch.Tensor:
    """Read a vector: float32 [D]. Raises ItemError for a file that holds no vector of finite numbers."""
    try:
        vector = _read(path)
    except (KinemakeError, SafetensorError, OSError, ValueError, EOFError, RecursionError) as error:
        reason = error.reason if isinstance(error, KinemakeError) else one_line(error)
        raise ItemError(f"the condition {path} cannot be read ({reason})", REMEDY) from None
    if vector.ndim != 1 or not vector.isfinite().all():
        what = f"a tensor of the shape {tuple(vector.shape)}" if vector.ndim != 1 else "a number that is not finite"
        raise ItemError(f"the condition {path} holds {what}", REMEDY)
    return vector.float()


def _read(path: Path) -> torch.Tensor:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        (tensor,) = load_file(path).values()
        return tensor
    if suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
    numbers = json.loads(read_text(path))
    if not isinstance(numbers, list) or not all(type(number) in (int, float) for number in numbers):
        raise ValueError("it is no JSON list of numbers")
    return torch.tensor(numbers, dtype=torch.float64)
