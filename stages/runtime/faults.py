"""Faults that an exception of a library, of the system or of torch stands for."""

from __future__ import annotations

import errno
import re

from stages.runtime.errors import one_line

PATH_ERRNOS = {  # the path cannot be written, or something else exists there
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EIO, errno.ESTALE),
}


def job_fault(error: Exception) -> str:
    """Name of a fault that is not the item's (disk full, path not writable, GPU lost); "" otherwise."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or re.search(r"\(os error (28|122)\)|No space left on device", str(error)):  # as safetensors words it
        return "the disk is full"
    if isinstance(error, OSError) and error.errno in PATH_ERRNOS and error.filename:
        return f"{error.filename2 or error.filename} cannot be used ({error.strerror})"
    if type(error).__name__ == "AcceleratorError":
        return f"the GPU failed ({one_line(error)})"
    return ""


def ran_out_of_memory(error: Exception) -> bool:
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch has no class for it
    return on_cpu or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
