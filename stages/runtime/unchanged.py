"""Detect changes of the files that an item reads: its key is valid only if they stay the same during the work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from stages.runtime.artifacts import Artifact, index_path, member_path
from stages.runtime.store import LINKED

States = dict[Path, tuple[int, ...]]


def file_states(paths: Iterable[Path]) -> States:
    """The state of each existing file. Any write or replacement changes it, even if the content is restored."""
    states: States = {}
    for path in paths:
        try:
            state = os.stat(path)
        except OSError:
            continue
        # Each further hard link changes the ctime of a file in the store.
        changed = 0 if path.suffix in LINKED else state.st_ctime_ns
        states[path] = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, changed)
    return states


def artifact_files(artifact: Artifact) -> list[Path]:
    """The files of an artifact: itself, its index and its members."""
    index = index_path(artifact.path)
    return [artifact.path, index, *(member_path(index, suffix) for suffix in artifact.members)]


def changed_file(states: Mapping[Path, tuple[int, ...]]) -> Path | None:
    """The first file whose state has changed, or None."""
    now = file_states(states)
    return next((path for path, state in states.items() if now.get(path) != state), None)
