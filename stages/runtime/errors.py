"""Whose fault it is decides what happens next.

Every message is one sentence that names the thing, its value and the remedy, because it is all that a user sees.
"""

import errno
import re
from datetime import date
from typing import Any

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


def shown(value: Any) -> str:
    """A value for a message: at most some 80 characters of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list within itself
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def is_scalar(value: Any) -> bool:
    """Whether YAML may have made the value of a word without quotes: a number, a truth value, a date."""
    return isinstance(value, (bool, int, float, date))


def in_quotes(value: Any) -> str:
    """The remedy where a value of `is_scalar` should have been text."""
    example = {True: "yes", False: "no"}[value] if isinstance(value, bool) else shown(value)
    if isinstance(value, date):
        example = value.isoformat()
    return f'it must be text: write it in quotes, such as "{example}"'


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
