"""Files: read where they are plain ones, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def file_fault(path: Path | str) -> str:
    """Why no file can be read at a path, in words that follow its name; empty where one can."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    if not stat.S_ISREG(mode):
        return "is no file"
    return "" if os.access(path, os.R_OK) else "may not be read by this user"


def open_plain(path: Path | str) -> BinaryIO:
    """A plain file, opened to be read. Raises OSError for anything else that stands there: a FIFO, a device, a folder."""
    return open(path, "rb", opener=_plain)


def _plain(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # else a FIFO without a writer is waited for
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no plain file", path)


def read_plain(path: Path | str, longest: int) -> bytes:
    """What a plain file holds. Raises OSError for anything else, and for a file of more than `longest` bytes."""
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > longest:
            raise OSError(errno.EFBIG, f"it has more than {longest} bytes", str(path))
        return file.read(longest)


def remove(path: Path) -> None:
    """Remove what stands at a path, if anything does: a folder with all in it, a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A free name beside `target`, of its ending, to write to; the file takes the place of `target` unless the block fails.

    The folder is created. The name cannot be guessed, so that no link stands there which a writer would follow.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
