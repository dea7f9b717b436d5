"""Detect changes of the files that an item reads: its key is valid only if they stay the same during the work."""

from __future__ import annotations

import os
import stat
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


def folder_states(paths: Iterable[Path]) -> States:
    """The state of each link and folder on the way to the paths, which may lead to another file for a moment."""
    ways = {way for path in paths for real in (path.absolute(), path.resolve()) for way in (real, *real.parents)}
    states: States = {}
    for way in ways:
        try:
            state = os.lstat(way)
        except OSError:
            continue
        if stat.S_ISLNK(state.st_mode):
            states[way] = (state.st_dev, state.st_ino, state.st_ctime_ns)
        elif stat.S_ISDIR(state.st_mode):
            # A new entry changes mtime and ctime, a new name of the folder the ctime alone.
            states[way] = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
    return states


def artifact_files(artifact: Artifact) -> list[Path]:
    """The files of an artifact: itself, its index and its members."""
    index = index_path(artifact.path)
    return [artifact.path, index, *(member_path(index, suffix) for suffix in artifact.members)]


def changed_file(states: Mapping[Path, tuple[int, ...]]) -> Path | None:
    """The first file whose state has changed, or None."""
    now = file_states(states)
    return next((path for path, state in states.items() if now.get(path) != state), None)


def changed_way(states: Mapping[Path, tuple[int, ...]]) -> Path | None:
    """The first link or folder of `folder_states` that led elsewhere meanwhile, or None."""
    now = folder_states(states)
    return next((way for way, state in states.items() if _led_elsewhere(state, now.get(way))), None)


def _led_elsewhere(before: tuple[int, ...], now: tuple[int, ...] | None) -> bool:
    if now is None or before[:2] != now[:2] or len(before) != len(now):
        return True
    is_folder = len(before) == 4
    return before[-1] != now[-1] and (not is_folder or before[2] == now[2])
