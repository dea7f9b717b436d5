"""The run of Snakemake that a stage works for. A job that outlives its run must not change the results of a later one."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from stages.runtime.errors import JobError
from stages.runtime.files import read_plain
from stages.runtime.locks import is_locked

# Environment variables: the path of the lock of the results, and what the run has written there.
LOCK_PATH, NOTE = "KINEMAKE_LOCK", "KINEMAKE_RUN"
LONGEST_NOTE = 10_000  # bytes


def start(lock: Path, note: str) -> None:
    """Let the stages that this process starts belong to the run that holds `lock` and has written `note` there."""
    os.environ |= {LOCK_PATH: os.path.abspath(lock), NOTE: note}


def check_run() -> None:
    """Raise JobError if the run that started this process has ended. By hand, there is none."""
    lock, note = os.environ.get(LOCK_PATH), os.environ.get(NOTE)
    if lock and note and _has_ended(Path(lock), note):
        raise JobError("the run that started this job has ended", "start it again: what is finished is kept")


def _has_ended(lock: Path, note: str) -> bool:
    """Whether the lock is free, or another run has written there. False where that cannot be seen, as in a container."""
    try:
        found = read_plain(lock, LONGEST_NOTE).decode(errors="replace")
    except OSError:
        return False
    return found not in ("", note) or (_was_locked(lock) and not is_locked(lock))


@cache
def _was_locked(lock: Path) -> bool:
    """Whether the lock was held at first. Other nodes may not see it."""
    return is_locked(lock)
