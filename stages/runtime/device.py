"""Choose the torch device of a process."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from stages.runtime.errors import JobError
from stages.runtime.lease import lease, share_of_devices
from stages.runtime.log import log

_leased: list[str] = []  # the GPUs that this process holds
os.register_at_fork(after_in_child=_leased.clear)


def take_device(device: str, threads: int | None, gpus: int = 1, seen: int = 1) -> str:
    """Choose the device ("cpu", "cuda" or "cuda:1") and the number of CPU threads.

    Call it before torch is imported for the first time. "auto" leases `gpus` free GPUs, of which "cuda" is the first;
    without any GPU it is the CPU. Every call in a process gives the same GPUs. Raises JobError if the device is not
    available. This process sees the first `seen` of the leased GPUs; the others are for its ranks.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    leased = lease_once(gpus) if device == "auto" else []
    if seen < len(leased):
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(leased[:seen])
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        if torch.cuda.is_available() and not leased:
            raise JobError(
                "torch sees a GPU that cannot be leased", "put nvidia-smi on the path, or name it: --device cuda:0"
            )
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def lease_once(count: int) -> list[str]:
    """The GPUs that this process has leased; the first call leases them. Raises JobError if they are less than `count`."""
    if not _leased and (devices := lease(count)):
        _leased.extend(devices)
        log("lease", devices=devices)
    if _leased and len(_leased) < count:
        raise JobError(
            f"{count} GPUs are wanted and this process has leased {len(_leased)}", "run these items by themselves"
        )
    return _leased


def gpu_of_rank(number: int, device: str) -> str:
    """The GPU of rank `number` of this process, as CUDA_VISIBLE_DEVICES names it; "" if this process works on a CPU.

    `device` is that of this process, which is rank 0. Raises JobError if it has not leased so many GPUs.
    """
    if device == "cpu":
        return ""
    if number >= len(_leased):
        raise JobError(f"device {device} is given and the job needs several GPUs", "use device auto, or set gpus to 1")
    return _leased[number]


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use this process's share of the CPU cores in the block, if that is more than the threads of its work.

    A job with a GPU works on one thread or a few, because its CPU cores have little to do. While it loads a model, a job
    with one of N devices uses the Nth part of the cores that it may run on. A job without a device has its share already.
    """
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(max(usual, int(share_of_devices() * len(os.sched_getaffinity(0)))))
    try:
        yield
    finally:
        torch.set_num_threads(usual)


def check_device(device: str) -> None:
    """Raise JobError for a GPU where torch sees none."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise JobError(f"device {device} is asked for and torch sees no GPU", "use device cpu or auto")


@cache
def device_name(device: str) -> str:
    """The name of the hardware that a device stands for, such as "GPU: NVIDIA H200".

    Results may differ in the last bit between two names.
    """
    if device != "cpu":
        import torch

        try:
            return f"GPU: {torch.cuda.get_device_name(device)}"
        except (RuntimeError, AssertionError):  # a driver that gives no name is no reason to fail
            return "GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return f"CPU: {next(names, platform.machine())}"
