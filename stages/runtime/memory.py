"""Is there room for a model's weights: looked at before they are loaded, which may take minutes."""

from __future__ import annotations

from pathlib import Path

from stages.runtime.errors import JobError
from stages.runtime.weights import in_words


class NoRoom(MemoryError):
    """The weights do not fit on the device as they are to be loaded."""


def check(size: int, device: str, offloaded: bool, what: str) -> None:
    """See that weights of `size` bytes fit on a torch device, or into main memory where they are offloaded to that.

    Raises NoRoom for a GPU, where offloading may help, JobError for main memory, where nothing does. `what` names them.
    """
    on_gpu = device.startswith("cuda") and not offloaded
    free = gpu_memory(device) if on_gpu else main_memory()
    if size <= free:
        return
    needs = f"{what} takes {in_words(size)}"
    if on_gpu:
        raise NoRoom(f"{needs} and {device} has {in_words(free)} free")
    raise JobError(f"{needs} and this machine has {in_words(free)} of memory free", "take a larger one, or a smaller dtype")


def gpu_memory(device: str) -> int:
    """Free bytes of a GPU; "cuda" stands for all that this process has leased."""
    import torch

    devices = range(torch.cuda.device_count()) if device == "cuda" else [device]
    return sum(torch.cuda.mem_get_info(one)[0] for one in devices)


def main_memory() -> int:
    """Bytes of main memory that programs may still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
