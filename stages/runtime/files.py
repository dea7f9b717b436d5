"""Read regular files only, and write files atomically."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path


def file_fault(path: Path | str) -> str:
    """Reason why a path cannot be read as a file, as words that follow the path; "" if it can."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    if not stat.S_ISREG(mode):
        return "is no file"
    return "" if os.access(path, os.R_OK) else "may not be read by this user"


def open_plain(path: Path | str) -> BufferedReader:
    """Open a regular file for reading. Raises OSError for anything else: a FIFO, a device, a folder."""
    return open(path, "rb", opener=_plain)


def _plain(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # without it, opening a FIFO waits for a writer
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no plain file", path)


def read_plain(path: Path | str, longest: int) -> bytes:
    """The content of a regular file. Raises OSError for anything else, and for a file of more than `longest` bytes."""
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > longest:
            raise OSError(errno.EFBIG, f"it has more than {longest} bytes", str(path))
        return file.read(longest)


def set_default_permissions(folder: Path) -> None:
    """Give the safetensors files in a folder the default permissions: the library makes them private to their owner."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in folder.rglob("*.safetensors"):
        if path.is_file() and path.stat().st_nlink == 1:  # a hard-linked file belongs to another repository too
            path.chmod(0o666 & ~mask)


def remove(path: Path) -> None:
    """Remove a file, a link (not its target) or a folder with its content. A missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield an unused path beside `target`, with the same ending.

    The file written there replaces `target` unless the block raises.

    Missing folders are created. The name cannot be guessed, so no one can plant a link that the writer would follow. An
    OSError that names the temporary file names `target` instead.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    except OSError as error:
        if error.filename in (temporary, str(temporary)):
            error.filename = str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_if_changed(path: str, text: str) -> None:
    """Write a small file atomically. A file that already holds the text keeps its modification time."""
    if not holds(path, text):
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(text.encode())


def holds(path: str, text: str) -> bool:
    """Whether a file is readable and holds exactly this text."""
    return not file_fault(path) and Path(path).read_bytes() == text.encode()
