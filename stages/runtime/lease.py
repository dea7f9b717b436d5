"""A GPU for this process alone: one flock per device, held until the process dies.

Snakemake's `gpu=1` only counts; which device a stage uses is settled here, before torch is imported. The kernel frees the
lock when the last holder of the descriptor is gone (exit, crash, kill -9), so nothing has to be cleaned up. Where the
scheduler has handed over exactly the devices that are needed, the lease steps aside.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import tempfile
import time
from pathlib import Path

from stages.runtime.errors import JobError
from stages.runtime.locks import holder, keep, open_lock, try_lock
from stages.runtime.log import log

NO_DEVICES = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that stand for none
CUDA_DEVICE = r"\d+|(GPU|MIG)-[\w/-]+"
PRETENDED_DEVICE = r"[A-Za-z][\w-]*|\d{1,4}"
FIRST_WORD, NEXT_WORD = 5.0, 60.0  # seconds of waiting after which the log says what is waited for


def visible_devices() -> list[str]:
    """The devices this process may use: `CUDA_VISIBLE_DEVICES`, else `KINEMAKE_GPUS` (a number or a list: a pretended
    pool), else all that the driver reports.

    By UUID wherever the driver tells it: two processes may know one card by different numbers, and two cards by one.
    Raises JobError for a variable that names no devices, or one twice.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return named_devices(visible)
    if pretended := os.environ.get("KINEMAKE_GPUS"):
        return pretended_devices(pretended)
    return [uuid for uuids in driver_devices().values() for uuid in uuids]


def named_devices(visible: str) -> list[str]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names."""
    if visible.strip() in NO_DEVICES:
        return []
    names, known, found = [name.strip() for name in visible.split(",")], driver_devices(), []
    uuids = [uuid for card in known.values() for uuid in card]
    for name in names:
        if not re.fullmatch(CUDA_DEVICE, name, re.ASCII):
            raise JobError(f"CUDA_VISIBLE_DEVICES is {visible!r}", "give numbers or UUIDs of GPUs, with commas between")
        if name.isdigit() and known and name not in known:
            raise JobError(f"CUDA_VISIBLE_DEVICES names GPU {name}", f"the driver has {', '.join(known)}")
        begun = [uuid for uuid in uuids if uuid.startswith(name)]  # CUDA takes the beginning of a UUID for it
        found += known.get(name, begun if len(begun) == 1 else [name])
    return _each_once(found, "CUDA_VISIBLE_DEVICES", visible)


def pretended_devices(pretended: str) -> list[str]:
    """The devices that a value of KINEMAKE_GPUS stands for."""
    if re.fullmatch(r"\d{1,4}", pretended, re.ASCII):
        return [str(number) for number in range(int(pretended))]
    names = [name.strip() for name in pretended.split(",")]
    if not all(re.fullmatch(PRETENDED_DEVICE, name, re.ASCII) for name in names):
        raise JobError(f"KINEMAKE_GPUS is {pretended!r}", "give a number of devices, at most 9999, or their names")
    return _each_once(names, "KINEMAKE_GPUS", pretended)


def _each_once(devices: list[str], variable: str, value: str) -> list[str]:
    if twice := [device for device in devices if devices.count(device) > 1]:
        raise JobError(f"{variable} is {value!r}, which names the device {twice[0]} twice", "name each device once")
    return devices


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
    """Local to the node, the same inside and outside a container, and shared by its users. Raises JobError."""
    shared_memory, chosen = Path("/dev/shm"), os.environ.get("KINEMAKE_GPU_LOCKS")
    base = shared_memory if os.access(shared_memory, os.W_OK) else Path(tempfile.gettempdir())
    folder = Path(chosen or base / "kinemake-gpu-locks")
    remedy = "set KINEMAKE_GPU_LOCKS to another folder, the same for all who share the GPUs"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        mask = os.umask(0)
        try:
            folder.mkdir(mode=0o1777, exist_ok=True)
        finally:
            os.umask(mask)
    except OSError as error:
        raise JobError(f"the folder of GPU locks {folder} cannot be used ({error.strerror})", remedy) from None
    if folder.is_symlink() and not chosen:  # anyone may plant one there
        raise JobError(f"the folder of GPU locks {folder} is a link, which is not followed", remedy)
    return folder


def lease(count: int = 1, timeout: float | None = None) -> list[str]:
    """Hold `count` devices until this process dies and make them the only visible ones.

    Returns their ids; an empty list where the machine has none. Waits while all are busy, at most `timeout` seconds, and
    says so in the log. Raises JobError when there are fewer devices than wanted, the time is over, or a lock cannot be used.
    """
    pool = visible_devices()
    if not pool or (len(pool) == count and "SLURM_JOB_ID" in os.environ):
        return pool
    if count > len(pool):
        raise JobError(f"{count} GPUs are wanted and {len(pool)} are visible", "ask for fewer")
    folder, start, next_word = lock_folder(), time.monotonic(), FIRST_WORD
    while not (taken := _try_take(count, pool, folder)):
        waited = time.monotonic() - start
        if timeout is not None and waited > timeout:
            raise JobError(f"no GPU came free within {timeout:g} s", "wait for the running jobs, or use --device cpu")
        if waited > next_word:
            log("waiting", wanted=count, seconds=round(waited), devices=holders(pool, folder))
            next_word = waited + NEXT_WORD
        time.sleep(random.uniform(0.02, 0.1))
    for descriptor in taken.values():
        keep(descriptor)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return list(taken)


def holders(pool: list[str], folder: Path) -> dict[str, str]:
    """Who holds each device, in words."""
    said = {}
    for device in pool:
        descriptor = open_lock(_lock_of(device, folder))
        said[device] = "nobody" if try_lock(descriptor) else holder(descriptor)
        os.close(descriptor)
    return said


def _try_take(count: int, pool: list[str], folder: Path) -> dict[str, int]:
    """All wanted devices or none: two processes that want two never wait for each other with one each."""
    taken: dict[str, int] = {}
    for device in random.sample(pool, len(pool)):
        descriptor = open_lock(_lock_of(device, folder))
        if not try_lock(descriptor):
            os.close(descriptor)
            continue
        taken[device] = descriptor
        if len(taken) == count:
            return taken
    for descriptor in taken.values():
        os.close(descriptor)
    return {}


def _lock_of(device: str, folder: Path) -> Path:
    return folder / f"gpu-{device.replace('/', '_')}.lock"  # some names of MIG slices have slashes
