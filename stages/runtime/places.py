"""Places that are to be written: whether they can be, before hours of work end there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from stages.runtime.errors import job_fault

PROBE = 2**16  # bytes: more than a nearly full file system hands out of what it has reserved


def dangling(place: Path | str) -> str:
    """What a link is that leads nowhere, in words that follow its name; empty for all else."""
    is_dangling = os.path.islink(place) and not os.path.exists(place)
    return f"is a link to {os.readlink(place)}, which does not exist" if is_dangling else ""


def folder_fault(place: Path | str) -> str | None:
    """What stands where a folder is or would be made, if it is none; None where there is nothing."""
    if os.path.isdir(place) or not os.path.lexists(place):
        return None
    return f"{place} {dangling(place) or 'is a file, not a folder'}"


def output_fault(output: Path) -> str | None:
    """Why no file may be made at a place, whose folders are made where they are missing; None where one may, untried."""
    try:
        os.lstat(output)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long
        return error.strerror
    for folder in output.absolute().parents:
        if fault := folder_fault(folder):
            return fault
        if os.path.isdir(folder):
            return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} may not be written by this user"
    return None


def writing_fault(folder: Path) -> str | None:
    """Why no file can be written in a folder, which is made where it is missing; None where one can."""
    for place in (folder, *folder.parents):
        if fault := folder_fault(place):
            return fault
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(PROBE))
            os.fsync(file.fileno())
    except OSError as error:
        return job_fault(error) if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
    return None
