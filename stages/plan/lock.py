"""One run at a time in a results folder, from whatever working folder it was started."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from stages.runtime.errors import UsageError
from stages.runtime.lease import BUSY

NAME = ".lock"
_held: list[int] = []  # descriptors that keep this process's locks, which the kernel frees when it ends


def hold(results: Path) -> None:
    """Keep others out of the folder as long as this process lives. Raises UsageError where another one is in it.

    A file system that knows no locks is taken as free.
    """
    descriptor = _open(results, os.O_RDWR | os.O_CREAT)
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
    """Whether a run is in the folder. One that cannot be looked at is taken as free: `hold` says what is wrong."""
    try:
        descriptor = _open(results, os.O_RDONLY)
    except (OSError, UsageError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in BUSY
    finally:
        os.close(descriptor)
    return False


def _open(results: Path, flags: int) -> int:
    """A descriptor of the lock file, which is a file of its own: no link is followed, and none that has two names is taken.

    Raises OSError, and UsageError for anything else in its place.
    """
    path = results / NAME
    descriptor = -1
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        state = os.fstat(descriptor)
        if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
            return descriptor
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    if descriptor >= 0:
        os.close(descriptor)
    raise UsageError(f"{path} is no file of its own", "remove it: it is a link, or nothing that Kinemake made")
