"""One run at a time in a results folder, from whatever working folder it was started."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from stages.runtime.errors import JobError, UsageError
from stages.runtime.locks import BUSY, keep, open_lock, try_lock

NAME, NOTE = ".lock", b"process "


def hold(results: Path) -> None:
    """Keep others out of the folder as long as this process lives. Raises UsageError where another one is in it.

    A lock that is not one of ours is refused too. A file system that knows no locks is taken as free.
    """
    results.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = open_lock(results / NAME, writable=True)
    except JobError as error:
        raise UsageError(error.reason, error.remedy) from None
    note = os.pread(descriptor, 200, 0)
    if note and not note.startswith(NOTE):
        os.close(descriptor)
        raise UsageError(f"{results / NAME} is not a lock of Kinemake", "remove it, or set results to another folder")
    try:
        free = try_lock(descriptor)
    except OSError:
        return os.close(descriptor)
    if not free:
        os.close(descriptor)
        raise UsageError(
            f"{results} is in use by {note.decode(errors='replace').strip() or 'another run'}",
            "wait for it, or set results to another folder: both may have one store",
        )
    keep(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, NOTE + f"{os.getpid()} on {socket.gethostname()}, in {os.getcwd()}\n".encode(), 0)


def is_held(results: Path) -> bool:
    """Whether a run is in the folder."""
    try:
        descriptor = os.open(results / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in BUSY
    finally:
        os.close(descriptor)
    return False
