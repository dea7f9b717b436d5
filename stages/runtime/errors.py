"""Whose fault it is decides what happens next.

Every message is one sentence that names the thing, its value and the remedy, because it is all that a user sees.
"""

import errno
import re

PLACES = {  # errors of a file or folder that stands where something is to be written, or may not be written
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EIO, errno.ESTALE),
}


class KinemakeError(Exception):
    """Base of every error that a user sees as one sentence instead of a traceback."""

    def __init__(self, reason: str, remedy: str = ""):
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}: {remedy}" if remedy else reason)


class UsageError(KinemakeError):
    """The command line, the manifest or the config is wrong: exit code 2, nothing was started."""


class ItemError(KinemakeError):
    """One item cannot be made (corrupt video, wrong shape): it fails, its neighbours in the shard go on."""


class JobError(KinemakeError):
    """Nothing can be made here (weights missing, disk full, no GPU): exit code 1, and no item is marked as failed."""


def one_line(error: Exception) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def job_fault(error: Exception) -> str:
    """What a fault that would hit the next item as well is called; empty for an item's own."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or re.search(r"\(os error (28|122)\)|No space left on device", str(error)):  # safetensors has errors of its own
        return "the disk is full"
    if isinstance(error, OSError) and error.errno in PLACES and error.filename:
        return f"{error.filename2 or error.filename} cannot be used ({error.strerror})"
    if type(error).__name__ == "AcceleratorError":
        return f"the GPU failed ({one_line(error)})"
    return ""
