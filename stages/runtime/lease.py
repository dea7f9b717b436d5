"""A GPU for this process alone: one flock per device, held until the process dies.

Snakemake's `gpu=1` only counts; which device a stage uses is settled here, before torch is imported. The kernel frees the
lock when the last holder of the descriptor is gone (exit, crash, kill -9), so nothing has to be cleaned up. Where the
scheduler has handed over exactly the devices that are needed, the lease steps aside.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import subprocess
import tempfile
import time
from pathlib import Path

from stages.runtime.errors import JobError

BUSY = {errno.EAGAIN, errno.EACCES}
_held: list[int] = []  # descriptors of this process's locks: never closed, freed by the kernel


def visible_devices() -> list[str]:
    """The devices this process may use: `CUDA_VISIBLE_DEVICES`, else `KINEMAKE_GPUS` (a number or a list: a pretended
    pool), else all that the driver reports.

    By UUID wherever the driver tells it: two processes may know one card by different numbers, and two cards by one.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [device for device in visible.split(",") if device not in ("", "-1", "NoDevFiles")]
        known = driver_devices() if any(device.isdigit() for device in named) else {}
        return [uuid for device in named for uuid in known.get(device, [device])]
    if pretended := os.environ.get("KINEMAKE_GPUS"):
        return [str(i) for i in range(int(pretended))] if pretended.isdigit() else pretended.split(",")
    return [uuid for uuids in driver_devices().values() for uuid in uuids]


def driver_devices() -> dict[str, list[str]]:
    """UUIDs by the driver's index, in the order of the bus, which CUDA is told to follow; empty without a driver.

    A card that is cut into MIG slices cannot be used whole: it stands for its slices.
    """
    cards: dict[str, list[str]] = {}
    for line in nvidia_smi("-L"):
        uuid = line.rpartition("UUID: ")[2].rstrip(")")
        if card := re.match(r"GPU (\d+): ", line):
            index = card[1]
            cards[index] = [uuid]
        elif line.lstrip().startswith("MIG "):
            cards[index] = [*(known for known in cards[index] if known.startswith("MIG-")), uuid]
    if cards:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return cards


def ask_driver(*facts: str) -> list[list[str]]:
    """A row per GPU, of the facts that are asked for, by nvidia-smi's names (memory in MiB); none without a driver."""
    return [line.split(", ") for line in nvidia_smi(f"--query-gpu={','.join(facts)}", "--format=csv,noheader,nounits")]


def nvidia_smi(*question: str) -> list[str]:
    """The lines of the driver's answer; none without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", *question], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def lock_folder() -> Path:
    """Local to the node, the same inside and outside a container, and shared by its users."""
    shared_memory = Path("/dev/shm")
    base = shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())
    folder = Path(os.environ.get("KINEMAKE_GPU_LOCKS") or base / "kinemake-gpu-locks")
    if not folder.is_dir():
        mask = os.umask(0)
        try:
            folder.mkdir(mode=0o1777, parents=True, exist_ok=True)
        finally:
            os.umask(mask)
    return folder


def lease(count: int = 1, timeout: float | None = None) -> list[str]:
    """Hold `count` devices until this process dies and make them the only visible ones.

    Returns their ids; an empty list where the machine has none. Waits while all are busy, at most `timeout` seconds.
    Raises JobError when there are fewer devices than wanted, or the time is over.
    """
    pool = visible_devices()
    if not pool or (len(pool) == count and "SLURM_JOB_ID" in os.environ):
        return pool
    if count > len(pool):
        raise JobError(f"{count} GPUs are wanted and {len(pool)} are visible", "ask for fewer")
    folder, start = lock_folder(), time.monotonic()
    while not (taken := _try_take(count, pool, folder)):
        if timeout is not None and time.monotonic() - start > timeout:
            raise JobError(f"no GPU came free within {timeout:g} s", "wait for the running jobs, or use --device cpu")
        time.sleep(random.uniform(0.02, 0.1))
    _held.extend(taken.values())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return list(taken)


def _try_take(count: int, pool: list[str], folder: Path) -> dict[str, int]:
    """All wanted devices or none, decided under one short lock, so that two who want two cannot block each other."""
    mutex = _open_shared(folder / "pool.lock")
    fcntl.flock(mutex, fcntl.LOCK_EX)
    taken: dict[str, int] = {}
    try:
        for device in random.sample(pool, len(pool)):
            descriptor = _open_shared(folder / f"gpu-{device.replace('/', '_')}.lock")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno not in BUSY:
                    raise
                continue
            taken[device] = descriptor
            if len(taken) == count:
                for held in taken.values():  # for a human who looks; nobody trusts it
                    os.ftruncate(held, 0)
                    os.pwrite(held, f"pid {os.getpid()}\n".encode(), 0)
                return taken
        for descriptor in taken.values():
            os.close(descriptor)
        return {}
    finally:
        os.close(mutex)


def _open_shared(path: Path) -> int:
    """Open a lock file of any user. Without O_CREAT first: Linux refuses O_CREAT on others' files in sticky folders."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        mask = os.umask(0)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        finally:
            os.umask(mask)
