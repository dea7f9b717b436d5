"""Check that a model's weights fit in memory, before minutes are spent on loading them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stages.runtime.errors import JobError, format_bytes

GROUPS_OF_PROCESS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Names of the limit and the use of a control group, and of the part of its use that the kernel frees under pressure.
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))


class NoRoom(MemoryError):
    """The weights do not fit on the device without offloading."""


def check(size: int, device: str, offloaded: bool, what: str) -> None:
    """Check that weights of `size` bytes fit on a torch device, or in main memory if they are offloaded.

    `what` names them in the error. Raises NoRoom for a GPU, where offloading may help, and JobError for main memory.
    """
    on_gpu = device.startswith("cuda") and not offloaded
    free = gpu_memory(device) if on_gpu else main_memory()
    if size <= free:
        return
    needs = f"{what} takes {format_bytes(size)}"
    if on_gpu:
        raise NoRoom(f"{needs} and {device} has {format_bytes(free)} free")
    raise JobError(
        f"{needs} and this machine has {format_bytes(free)} of memory free", "take a larger one, or a smaller dtype"
    )


def gpu_memory(device: str) -> int:
    """Free bytes of a GPU, with those that torch keeps for later. "cuda" stands for all GPUs that this process leased."""
    import torch

    devices = range(torch.cuda.device_count()) if device == "cuda" else [device]
    kept = sum(torch.cuda.memory_reserved(one) - torch.cuda.memory_allocated(one) for one in devices)
    return kept + sum(torch.cuda.mem_get_info(one)[0] for one in devices)


def peak_of_gpu(device: str) -> int:
    """The most bytes that torch had allocated on a GPU since the last call; 0 for a CPU."""
    if not device.startswith("cuda"):
        return 0
    import torch

    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def own_memory() -> int:
    """Bytes of main memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main_memory() -> int:
    """Available bytes of main memory: of the machine, or of a control group of this process (a Slurm job, a container)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    groups = GROUPS_OF_PROCESS.read_text() if GROUPS_OF_PROCESS.exists() else ""
    return min([available, *group_memory(groups, CGROUPS)])


def group_memory(groups: str, root: Path) -> Iterator[int]:
    """Available bytes of each control group with a limit, version 1 or 2, that this process is in.

    `groups` is the content of /proc/self/cgroup, and `root` the folder of the groups. A container sees its own group there
    and none above it, so groups that are not there are left out. psutil does not read these limits.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, names = (root / "memory", V1) if controllers else (root, V2)
        inner = Path(path.lstrip("/"))
        for folder in (base / inner, *(base / parent for parent in inner.parents)):
            yield from room_in(folder, *names)


def room_in(folder: Path, limit: str, use: str, reclaimable: tuple[str, ...]) -> Iterator[int]:
    """Available bytes of the control group of a folder; nothing if it has no limit, or does not exist here."""
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, use))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if most != "max":
        yield max(0, int(most) - int(used) + sum(int(statistics.get(name, 0)) for name in reclaimable))
