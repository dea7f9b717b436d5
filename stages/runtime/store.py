"""The store: finished items under the hash of all that made them.

An entry is a folder `<2 hex>/<key>/` that holds `artifact.<ending>` and its members. It comes into being by one rename of
a folder that was written and synced before, so that an entry is whole or absent whatever kills the process. The store can
be deleted at any time; it only saves work.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.runtime.artifacts import index_path, member_path

STEM = "artifact"
LEFT_BEHIND = 14 * 24 * 3600  # seconds; no item takes that long
CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}


class Store:
    """A store below `root`, made on first use."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def entry(self, key: str) -> Path:
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        return self.entry(key).is_dir()

    def partial(self, key: str) -> Path:
        """Where an unfinished long item keeps its state. Forgotten when the item is put into the store."""
        path = self.root / "partial" / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the store's file system, gone afterwards unless `put` took it."""
        folder = self.root / "staging" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes that were killed weeks ago left: items in staging, states of long items."""
        for left in (*self.root.glob("staging/*"), *self.root.glob("partial/*")):
            with suppress(OSError):  # another process may be sweeping too
                if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()

    def put(self, key: str, folder: Path) -> None:
        """Make `folder` the entry of `key`. Where another process was faster, its entry stands."""
        sync(folder)
        entry = self.entry(key)
        entry.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(entry)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(entry.parent)
        self.partial(key).unlink(missing_ok=True)

    def link(self, key: str, output: Path) -> None:
        publish(self.entry(key), output)


def publish(entry: Path, output: Path) -> None:
    """Hard-link an entry's files to their places, copied across file systems: members first, the declared one last.

    They keep the time at which the item was made, so times stay in the order of the work. Snakemake touches each declared
    file that a job leaves, so where another run holds a link to it already, this one gets a copy: else that run's file
    would look newer than what was made of it.
    """
    declared = f"{STEM}{output.suffix}"
    index = index_path(Path(declared)).name
    files = [path for path in sorted(entry.rglob("*")) if path.is_file()]
    files.sort(key=lambda path: (path.name == declared, path.name == index))
    for path in files:
        copy = path.name == declared and path.stat().st_nlink > 1
        place(path, member_path(output, path.relative_to(entry).as_posix().removeprefix(STEM)), copy)


def place(source: Path, target: Path, copy: bool) -> None:
    """Put a hard link to `source` at `target`, or a copy where it is asked for or a link cannot be, in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        try:
            if not copy:
                os.link(source, temporary)
        except OSError as error:
            if error.errno not in CANNOT_LINK:
                raise
            copy = True
        if copy:
            shutil.copy2(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Bring a folder's files and names to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
