"""The state of an unfinished denoising, in one safetensors file."""

from pathlib import Path

import torch

from stages.families.wan.sampler import State
from stages.runtime.partial import load_state, save_state


def save(path: Path, state: State) -> None:
    """Write the state atomically."""
    tensors = {"x": state.x}
    tensors |= {f"output_{i}": output for i, output in enumerate(state.model_outputs) if output is not None}
    further = {"sample": state.last_sample, "generator": state.generator, "momentum": state.momentum}
    tensors |= {name: tensor for name, tensor in further.items() if tensor is not None}
    numbers = {
        "step": state.step,
        "order": state.this_order,
        "warm": state.lower_order_nums,
        "outputs": len(state.model_outputs),
    }
    save_state(path, numbers, tensors)


def load(path: Path, device: torch.device) -> State | None:
    """Read the saved state; None if there is none. A state that is damaged, or that belongs to another item, is removed."""
    if (found := load_state(path)) is None:
        return None
    numbers, tensors = found
    generator = tensors.pop("generator", None)  # stays on the CPU
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    return State(
        step=numbers["step"],
        x=tensors["x"],
        model_outputs=tuple(tensors.get(f"output_{i}") for i in range(numbers["outputs"])),
        last_sample=tensors.get("sample"),
        this_order=numbers["order"],
        lower_order_nums=numbers["warm"],
        generator=generator,
        momentum=tensors.get("momentum"),
    )


def finished_steps(path: Path) -> int:
    """Number of steps that the saved state is past; 0 if there is none."""
    found = load_state(path)
    return found[0]["step"] if found else 0
