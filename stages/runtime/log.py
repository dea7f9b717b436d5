"""The log of a stage: one JSON object per line."""

import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

RESERVE = 2**16  # bytes
PROGRESS = ("load", "shard")  # events that the progress bar shows too
_about: ContextVar[dict[str, Any]] = ContextVar("about")  # facts of every line


@contextmanager
def log_about(**facts: Any) -> Iterator[None]:
    """Every line that is written in the block has these facts too."""
    token = _about.set({**about(), **facts})
    try:
        yield
    finally:
        _about.reset(token)


def about() -> dict[str, Any]:
    """The facts of every line that is written here."""
    return _about.get({})


def log(event: str, **facts: Any) -> None:
    """Write a line to standard error. `time` is in seconds since 1970.

    On a terminal, events that the progress bar shows are left out.
    """
    if sys.stderr.isatty() and (event in PROGRESS or facts.get("status") in ("made", "reused")):
        return
    line = {"event": event, **about(), **facts, "time": round(time.time(), 3)}
    print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)


@contextmanager
def reserve_log_space() -> Iterator[Callable[[], None]]:
    """Reserve disk space for the log of this process, and yield a function that frees it.

    On a full disk the freed space holds the error message. Nothing is reserved if standard error is not a file.
    """
    with ExitStack() as room:
        with suppress(OSError):
            if stat.S_ISREG(os.fstat(2).st_mode):
                beside = os.path.dirname(os.readlink("/proc/self/fd/2"))
                ballast = room.enter_context(tempfile.TemporaryFile(dir=beside, buffering=0))
                ballast.write(os.urandom(RESERVE))  # random, because some file systems compress
        yield room.close
