"""Files that an item depends on: its key is true only if they are the same before the work and after it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from stages.runtime.artifacts import Artifact, index_path, member_path
from stages.runtime.store import LINKED

States = dict[Path, tuple[int, ...]]


def file_states(paths: Iterable[Path]) -> States:
    """The state of each file, as far as it is there: another one after any write or replacement, back and forth too."""
    states = {}
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            continue
        # A file that the store links changes its ctime with each further link.
        changed = 0 if path.suffix in LINKED else state.st_ctime_ns
        states[path] = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, changed)
    return states


def artifact_files(artifact: Artifact) -> list[Path]:
    """The files of an artifact: itself, its index and its members."""
    index = index_path(artifact.path)
    return [artifact.path, index, *(member_path(index, suffix) for suffix in artifact.members)]


def changed_file(states: Mapping[Path, tuple[int, ...]]) -> Path | None:
    """The first file that is no longer in the state that it was in, if there is one."""
    now = file_states(states)
    return next((path for path, state in states.items() if now.get(path) != state), None)
