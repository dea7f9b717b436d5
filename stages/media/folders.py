"""Folders of videos, images and texts: their files by ending and by stem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.media.options import IMAGE_ENDINGS, OTHER_ENDINGS, VIDEO_ENDINGS
from stages.runtime.errors import UsageError

TEXT_ENDINGS = (".txt",)


def files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files with one of these endings, in any case, sorted by name; no hidden files (`._x.mp4`) and no folders."""
    found = (path for path in _visible_files(folder) if path.suffix.lower() in endings)
    return sorted(found, key=lambda path: path.name)


def unsupported_files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The videos and images of a folder whose endings, by which they are known, are not among `endings`."""
    others = {*VIDEO_ENDINGS, *IMAGE_ENDINGS, *OTHER_ENDINGS} - set(endings)
    return files(folder, tuple(others))


def _visible_files(folder: Path) -> Iterable[Path]:
    if not os.path.isdir(folder):
        return []
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".") and not os.path.isdir(path)]
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be read ({error.strerror})", "make it readable") from None


def by_stem(paths: Iterable[Path], called: str) -> dict[str, Path]:
    """Files by stem. Raises UsageError if two have the same one; `called` is what the error calls the files."""
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise UsageError(f"{path} and {found[path.stem].name} are both {called} for {path.stem}", "remove one of them")
        found[path.stem] = path
    return found
