"""Folders of videos, images and texts: which of their files count, by name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from stages.media.options import OTHER_ENDINGS, PICTURE_ENDINGS, VIDEO_ENDINGS
from stages.runtime.errors import UsageError

TEXT_ENDINGS = (".txt",)


def files(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files of a folder with one of these endings, in any case, by name, without hidden ones (`._x.mp4`) and folders."""
    found = (path for path in _shown(folder) if path.suffix.lower() in endings)
    return sorted(found, key=lambda path: path.name)


def overlooked(folder: Path, endings: Sequence[str]) -> list[Path]:
    """The files that look like videos or images by their endings, and are not among `files`, in a folder of these."""
    others = {*VIDEO_ENDINGS, *PICTURE_ENDINGS, *OTHER_ENDINGS} - set(endings)
    return files(folder, tuple(others))


def _shown(folder: Path) -> Iterable[Path]:
    if not os.path.isdir(folder):
        return []
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".") and not os.path.isdir(path)]
    except OSError as error:
        raise UsageError(f"the folder {folder} cannot be read ({error.strerror})", "make it readable") from None


def by_stem(paths: Iterable[Path], called: str) -> dict[str, Path]:
    """Files by their names without endings. Raises UsageError where two have one."""
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise UsageError(f"{path} and {found[path.stem].name} are both {called} for {path.stem}", "remove one of them")
        found[path.stem] = path
    return found
