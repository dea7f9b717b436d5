"""Lease GPUs: one flock per device, held until the process ends.

Snakemake's `gpu=1` only counts; this module chooses the device, before torch is imported. The kernel frees the lock when the
last holder of the descriptor is gone (exit, crash, kill -9), so nothing has to be cleaned up. If a Slurm job has exactly as
many devices as needed, no lock is taken.
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

NO_DEVICES = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that mean no device
CUDA_DEVICE = r"\d+|(GPU|MIG)-[\w/-]+"
SIMULATED_DEVICE = r"[A-Za-z][\w-]*|\d{1,4}"
FIRST_MESSAGE, MESSAGE_INTERVAL = 5.0, 60.0  # seconds of waiting until the first log line, and between log lines
_share = 0.0


def visible_devices() -> list[str]:
    """The devices that this process may use.

    They come from `CUDA_VISIBLE_DEVICES`, else from `KINEMAKE_GPUS` (a simulated pool: a number or a list), else from the
    driver. Devices are named by UUID if the driver knows it, because two processes may number the same card differently.
    Raises JobError for a variable that names no device, or the same one twice.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return named_devices(visible)
    if simulated := os.environ.get("KINEMAKE_GPUS"):
        return simulated_devices(simulated)
    return [uuid for uuids in driver_devices().values() for uuid in uuids]


def named_devices(visible: str) -> list[str]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names. Raises JobError."""
    if visible.strip() in NO_DEVICES:
        return []
    names, known, found = [name.strip() for name in visible.split(",")], driver_devices(), []
    uuids = [uuid for card in known.values() for uuid in card]
    for name in names:
        if not re.fullmatch(CUDA_DEVICE, name, re.ASCII):
            raise JobError(f"CUDA_VISIBLE_DEVICES is {visible!r}", "give numbers or UUIDs of GPUs, with commas between")
        if name.isdigit() and known and name not in known:
            raise JobError(f"CUDA_VISIBLE_DEVICES names GPU {name}", f"the driver has {', '.join(known)}")
        matching = [uuid for uuid in uuids if uuid.startswith(name)]  # CUDA accepts a prefix of a UUID
        found += known.get(name, matching if len(matching) == 1 else [name])
    return _each_once(found, "CUDA_VISIBLE_DEVICES", visible)


def simulated_devices(value: str) -> list[str]:
    """The devices that a value of KINEMAKE_GPUS stands for. Raises JobError."""
    if re.fullmatch(r"\d{1,4}", value, re.ASCII):
        return [str(number) for number in range(int(value))]
    names = [name.strip() for name in value.split(",")]
    if not all(re.fullmatch(SIMULATED_DEVICE, name, re.ASCII) for name in names):
        raise JobError(f"KINEMAKE_GPUS is {value!r}", "give a number of devices, at most 9999, or their names")
    return _each_once(names, "KINEMAKE_GPUS", value)


def _each_once(devices: list[str], variable: str, value: str) -> list[str]:
    if twice := [device for device in devices if devices.count(device) > 1]:
        raise JobError(f"{variable} is {value!r}, which names the device {twice[0]} twice", "name each device once")
    return devices


def driver_devices() -> dict[str, list[str]]:
    """UUIDs by the driver's index, in PCI bus order; empty without a driver. It also sets CUDA to that order.

    A card that is split into MIG slices is listed as its slices, because it cannot be used as a whole.
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
    """One row per GPU with the values of `facts`, which are field names of nvidia-smi.

    Memory is in MiB. Empty without a driver.
    """
    return [line.split(", ") for line in nvidia_smi(f"--query-gpu={','.join(facts)}", "--format=csv,noheader,nounits")]


def nvidia_smi(*question: str) -> list[str]:
    """The output lines of nvidia-smi; empty without a driver."""
    try:
        done = subprocess.run(["nvidia-smi", *question], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def lock_folder() -> Path:
    """Folder of the GPU locks: local to the node, shared by its users, the same in a container. Raises JobError."""
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
    if folder.is_symlink() and not chosen:  # the default folder is in a place where anyone may create a link
        raise JobError(f"the folder of GPU locks {folder} is a link, which is not followed", remedy)
    return folder


def lease(count: int = 1, timeout: float | None = None) -> list[str]:
    """Hold `count` devices until this process ends, and make only them visible.

    Returns their ids, or an empty list if the machine has no GPU. While all devices are busy it waits and logs that, for at
    most `timeout` seconds. Raises JobError if there are fewer than `count` devices, on timeout, or for an unusable lock.
    """
    global _share
    pool = visible_devices()
    _share = count / max(count, len(pool)) if pool else 0.0
    if not pool or (len(pool) == count and "SLURM_JOB_ID" in os.environ):
        return pool
    if count > len(pool):
        raise JobError(f"{count} GPUs are wanted and {len(pool)} are visible", "ask for fewer")
    folder, start, next_message = lock_folder(), time.monotonic(), FIRST_MESSAGE
    while not (taken := _try_take(count, pool, folder)):
        waited = time.monotonic() - start
        if timeout is not None and waited > timeout:
            raise JobError(f"no GPU came free within {timeout:g} s", "wait for the running jobs, or use --device cpu")
        if waited > next_message:
            log("waiting", wanted=count, seconds=round(waited), devices=holders(pool, folder))
            next_message = waited + MESSAGE_INTERVAL
        time.sleep(random.uniform(0.02, 0.1))
    for descriptor in taken.values():
        keep(descriptor)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
    return list(taken)


def share_of_devices() -> float:
    """The share that this process has leased of the devices that it could choose from; 0 without a lease."""
    return _share


def holders(pool: list[str], folder: Path) -> dict[str, str]:
    """Description of the process that holds each device."""
    found = {}
    for device in pool:
        descriptor = open_lock(_lock_of(device, folder))
        found[device] = "nobody" if try_lock(descriptor) else holder(descriptor)
        os.close(descriptor)
    return found


def _try_take(count: int, pool: list[str], folder: Path) -> dict[str, int]:
    """Lock all wanted devices or none, so that two processes never wait for each other with one device each."""
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
