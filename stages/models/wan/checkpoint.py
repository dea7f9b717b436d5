"""The state of an unfinished denoising, in one safetensors file."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stages.models.wan.sampler import State
from stages.runtime.files import open_plain, replacing
from stages.runtime.partial import refuse_state, state_digest


def save(path: Path, state: State) -> None:
    """Write the state whole or not at all: under another name first."""
    outputs = {f"output_{i}": output for i, output in enumerate(state.outputs) if output is not None}
    tensors = {"x": state.x, "sample": state.sample, **outputs} if state.outputs else {"x": state.x}
    numbers = {"step": state.step, "order": state.order, "warm": state.warm, "outputs": len(state.outputs)}
    metadata = {"state": json.dumps(numbers), "digest": state_digest(path, numbers, tensors)}
    with replacing(path) as temporary:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def load(path: Path, device: torch.device) -> State | None:
    """The state that was saved; None where there is none. One that is damaged, or another item's, is removed."""
    try:
        with open_plain(path), safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        numbers = json.loads(metadata["state"])
        if metadata["digest"] == state_digest(path, numbers, tensors):
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            outputs = tuple(tensors.get(f"output_{i}") for i in range(numbers.pop("outputs")))
            return State(x=tensors["x"], sample=tensors.get("sample"), outputs=outputs, **numbers)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    refuse_state(path)
    return None
