"""The lock of a results folder: one run at a time, whatever working directory it starts from."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

from stages.runtime import own_run
from stages.runtime.errors import JobError, UsageError
from stages.runtime.files import read_plain
from stages.runtime.locks import LOCK, is_locked, keep, open_lock, try_lock

NOTE = b"process "
LONGEST_NOTE = 1 << 16  # bytes: it has the path of the working folder
ATTEMPTS, PAUSE = 10, 0.05  # seconds: a job that looks whether its run has ended holds the lock for a moment


def hold(results: Path) -> None:
    """Lock the folder until this process ends. Raises UsageError if another run is in it.

    A lock file of another program is refused. On a file system without locks, the folder counts as free.
    """
    results.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = open_lock(results / LOCK, writable=True)
    except JobError as error:
        raise UsageError(error.reason, error.remedy) from None
    note = os.pread(descriptor, 200, 0)
    if note and not note.startswith(NOTE):
        os.close(descriptor)
        raise UsageError(f"{results / LOCK} is not a lock of Kinemake", "remove it, or set results to another folder")
    try:
        free = lock_soon(descriptor)
    except OSError:
        return os.close(descriptor)
    if not free:
        os.close(descriptor)
        raise UsageError(
            f"{results} is in use by {note.decode(errors='replace').partition(chr(10))[0] or 'another run'}",
            "wait for it, or set results to another folder: both may have one store",
        )
    keep(descriptor)
    text = f"{NOTE.decode()}{os.getpid()} on {socket.gethostname()}, in {os.getcwd()}\n{uuid.uuid4().hex}\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    os.fsync(descriptor)  # for jobs on other nodes
    own_run.start(results / LOCK, text)


def lock_soon(descriptor: int) -> bool:
    """Lock an open file. False if another process holds it all the time. Raises OSError."""
    for _ in range(ATTEMPTS):
        if try_lock(descriptor):
            return True
        time.sleep(PAUSE)
    return False


def is_of_another_machine(results: Path) -> bool:
    """Whether the last run in the folder was started on another machine, whose lock may not be seen here."""
    try:
        return f" on {socket.gethostname()}, in ".encode() not in read_plain(results / LOCK, LONGEST_NOTE)
    except OSError:
        return True


def is_held(results: Path) -> bool:
    """Whether a run is in the folder."""
    return is_locked(results / LOCK)
