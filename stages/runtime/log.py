"""The log of a stage: one JSON object per line."""

import json
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

LAST_WORDS = 2**16  # bytes
PROGRESS = ("load", "shard")  # the progress bar shows what these say


def log(event: str, **facts: Any) -> None:
    """Write a line to standard error; `time` is in seconds since 1970.

    A person at a terminal is shown only what the progress bar does not tell.
    """
    if sys.stderr.isatty() and (event in PROGRESS or facts.get("status") in ("made", "reused")):
        return
    line = {"event": event, **facts, "time": round(time.time(), 3)}
    print(json.dumps(line, ensure_ascii=False), file=sys.stderr, flush=True)


@contextmanager
def room_for_last_words() -> Iterator[Callable[[], None]]:
    """Keep some room on the disk of this process's log; the function that is yielded gives it back.

    A full disk would else take the words that say so. Nothing is kept where standard error is no file.
    """
    with ExitStack() as room:
        with suppress(OSError):
            if stat.S_ISREG(os.fstat(2).st_mode):
                beside = os.path.dirname(os.readlink("/proc/self/fd/2"))
                ballast = room.enter_context(tempfile.TemporaryFile(dir=beside, buffering=0))
                ballast.write(os.urandom(LAST_WORDS))  # file systems that compress have no use for zeros
        yield room.close
