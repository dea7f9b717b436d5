"""Check that paths can be written, before hours of work fail there."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from stages.runtime.faults import job_fault

NOT_OURS = "may not be written by this user"
PROBE = 2**16  # bytes: more than a nearly full file system still grants from its reserve


def dangling(place: Path | str) -> str:
    """Description of a dangling link, as words that follow its path; "" for anything else."""
    if not os.path.islink(place):
        return ""
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        return f"is a link to {os.readlink(place)}, which does not exist"
    except OSError as error:
        return f"is a link to {os.readlink(place)}, which cannot be reached ({error.strerror})"
    return ""


def folder_fault(place: Path | str) -> str | None:
    """Reason why a path is not, and cannot become, a folder, or None. A missing path can become one."""
    if os.path.isdir(place) or not os.path.lexists(place):
        return None
    return f"{place} {dangling(place) or 'is a file, not a folder'}"


def output_fault(output: Path) -> str | None:
    """Reason why a file cannot be created at a path, or None.

    Missing folders above it count as creatable. Nothing is written.
    """
    try:
        os.lstat(output)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except OSError as error:  # such as a name that is too long
        return error.strerror
    for folder in output.absolute().parents:
        if fault := folder_fault(folder):
            return fault
        if os.path.isdir(folder):
            return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} {NOT_OURS}"
    return None


def writing_fault(folder: Path) -> str | None:
    """Reason why no file can be written to a folder, or None.

    The folder is created if missing, and a test file is written.
    """
    for place in (folder, *folder.parents):
        if fault := folder_fault(place):
            return fault
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(PROBE))
            os.fsync(file.fileno())
    except PermissionError:
        return output_fault(folder / "any") or f"{folder} {NOT_OURS}"
    except OSError as error:
        return job_fault(error) if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return None


def writing_remedy(fault: str) -> str:
    """The remedy for a fault of `writing_fault`."""
    return "let its group write there, as docs/cluster.md describes" if fault.endswith(NOT_OURS) else "mend that"


def nearest_existing_parent(folder: Path) -> Path:
    """The folder, or the nearest folder above it that exists."""
    return folder if os.path.exists(folder) else nearest_existing_parent(folder.parent)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that a folder is on, or will be on."""
    return shutil.disk_usage(nearest_existing_parent(folder.absolute())).free


def is_same_disk(folder: Path, other: Path) -> bool:
    """Whether two folders, which may not exist yet, are or will be on one file system, so that files can be hard-linked."""
    one, two = (os.stat(nearest_existing_parent(place.absolute())).st_dev for place in (folder, other))
    return one == two
