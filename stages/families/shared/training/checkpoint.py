"""The state of a training in one safetensors file: weights, averaged weights, moments of the optimizer, progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.runtime.errors import JobError, one_line
from stages.runtime.files import replacing

ADAM = ("step", "exp_avg", "exp_avg_sq")  # a weight that no step has updated has none of them


def save(
    path: Path,
    weights: Mapping[str, torch.nn.Parameter],
    averaged: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """Write the state atomically, to a temporary name first. `averaged` is in the order of `weights`."""
    tensors: dict[str, torch.Tensor] = {}
    for (name, weight), average in zip(weights.items(), averaged, strict=True):
        tensors |= {f"weight.{name}": weight, f"average.{name}": average}
        tensors |= {f"{entry}.{name}": optimizer.state[weight][entry] for entry in ADAM if weight in optimizer.state}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"facts": json.dumps(facts)})


def load(
    path: Path,
    weights: Mapping[str, torch.nn.Parameter],
    averaged: list[torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """Restore a state and return its facts. Raises JobError for a state that is damaged or of another model."""
    try:
        with safe_open(path, "pt") as file, torch.no_grad():
            facts, held = json.loads(file.metadata()["facts"]), set(file.keys())
            for (name, weight), average in zip(weights.items(), averaged, strict=True):
                weight.copy_(file.get_tensor(f"weight.{name}"))
                average.copy_(file.get_tensor(f"average.{name}"))
                state = {entry: file.get_tensor(f"{entry}.{name}") for entry in ADAM if f"{entry}.{name}" in held}
                if state:
                    moments = {entry: state[entry].to(weight.device) for entry in ADAM[1:]}
                    optimizer.state[weight] = {"step": state["step"], **moments}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = one_line(error)
        raise JobError(f"{path} does not go with this training ({reason})", "give another --output, or remove it") from error
    return facts
