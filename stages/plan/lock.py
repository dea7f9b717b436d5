"""One run at a time in a results folder, from whatever working folder it was started."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from stages.runtime.errors import UsageError
from stages.runtime.lease import BUSY

NAME = ".lock"
_held: list[int] = []  # descriptors that keep this process's locks, which the kernel frees when it ends


def hold(results: Path) -> None:
    """Keep others out of the folder as long as this process lives. Raises UsageError where another one is in it.

    A file system that knows no locks is taken as free.
    """
    results.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(results / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno not in BUSY:
            return
        raise UsageError(
            f"{results} is in use by {owner or 'another run'}",
            "wait for it, or set results to another folder: both may have one store",
        ) from None
    _held.append(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, in {os.getcwd()}\n".encode(), 0)


def is_held(results: Path) -> bool:
    """Whether a run is in the folder."""
    try:
        descriptor = os.open(results / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in BUSY
    finally:
        os.close(descriptor)
    return False
