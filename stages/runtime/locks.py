"""Lock files that several users share: flock on files without content.

The kernel frees a lock when its last descriptor is closed (exit, crash, kill -9), so nothing has to be cleaned up. Anyone
who may write to the folder may create a link under the name of a lock. So no link is followed, and nothing is written before
the file is known to be a lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from pathlib import Path

from stages.runtime.errors import JobError

LOCK = ".lock"  # in a results folder, held by the run that works there
BUSY = {errno.EAGAIN, errno.EACCES}
REMEDY = "remove it, or choose another folder"
_held: list[int] = []  # descriptors of this process's locks, open until it ends


def open_lock(path: Path, *, writable: bool = False) -> int:
    """A descriptor of the lock file at `path`, which is created if missing.

    Locking needs no write permission, except on network file systems. Raises JobError for a link, for anything but a regular
    file, and for a file or folder that this user may not use.
    """
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            # Without O_CREAT first: Linux refuses O_CREAT on others' files in sticky folders.
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = _create(path, flags, 0o666 if writable else 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise JobError(f"the lock {path} is a link, which is not followed", REMEDY) from None
        raise JobError(f"the lock {path} cannot be opened ({error.strerror})", REMEDY) from None
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        os.close(descriptor)
        raise JobError(f"the lock {path} is not a plain file of its own", REMEDY)
    return descriptor


def _create(path: Path, flags: int, mode: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:  # another process was faster
        return os.open(path, flags)
    os.fchmod(descriptor, mode)  # for all users, whatever this one's umask
    return descriptor


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Lock an open file, exclusively or together with other processes.

    False if another process holds it in a way that excludes this one. Raises OSError if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in BUSY:
            raise
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock at `path`. False without such a file, or on a file system without locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in BUSY
    finally:
        os.close(descriptor)
    return False


def wait_for_lock(descriptor: int, shared: bool = False) -> None:
    """Lock an open file, exclusively or together with other processes, as soon as no other process excludes it."""
    fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def keep(descriptor: int) -> None:
    """Keep a lock until this process ends. A forked child closes it, because the child may live longer."""
    _held.append(descriptor)


def held() -> list[int]:
    """The descriptors of all kept locks."""
    return list(_held)


def release() -> None:
    """Close all kept locks."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=release)


def holder(descriptor: int) -> str:
    """The process that holds the lock of an open file, with command and user, as far as this machine knows it."""
    state = os.fstat(descriptor)
    place = f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        lines = []
    pid = next((words[4] for words in lines if words[1] == "FLOCK" and words[5] == place), None)
    if pid is None:
        return "another process"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        user = user_name(os.stat(f"/proc/{pid}").st_uid)
    except OSError:
        return f"process {pid}"
    return f"process {pid} of {user} ({command[:200]})"


def user_name(uid: int) -> str:
    """The name of a user, or the number if there is no name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
