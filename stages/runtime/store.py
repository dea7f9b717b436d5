"""The store: finished items under the hash of all that their result depends on.

An entry is a folder `<2 hex>/<key>/` that holds `artifact.<ending>`, its members, and `seal.json`, the key and the digest of
each file. It comes into being by one rename of a folder that was written and synced before, so that an entry is whole or
absent whatever kills the process; it is checked against its seal before it is used. The store can be deleted at any time; it
only saves work.

Files are copied out of the store, so that an edit of a result changes that result alone. Lossless videos, by far the largest
files and no stage's declared output, are read-only hard links instead.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.runtime.artifacts import file_digest, index_path, member_path
from stages.runtime.errors import ItemError
from stages.runtime.files import read_plain, remove, replacing
from stages.runtime.locks import holder, try_lock
from stages.runtime.log import log
from stages.runtime.places import folder_fault

STEM = "artifact"
SEAL = "seal.json"
LONGEST_SEAL = 256 * 2**20  # bytes; a million files are less
LINKED = (".mkv",)  # Snakemake refuses declared outputs that are read-only
FIRST_WORD, LONGEST_LOCK = 2.0, 20.0  # seconds of waiting, to the word that says so and in all
LEFT_BEHIND = 14 * 24 * 3600  # seconds; no item takes that long
IN_THE_WAY = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM}  # also what another user has there
CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}


class StoreRemoved(ItemError):
    """The store, or an entry of it, was removed while an item needed it."""

    def __init__(self, place: Path):
        super().__init__(f"{place} was removed while it was in use", "leave the store where it is until the run has ended")


class Store:
    """A store below `root`, made on first use."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def entry(self, key: str) -> Path:
        return self.root / key[:2] / key

    def find(self, key: str) -> Path | None:
        """The entry of `key`, checked against the digests that were taken when it was put; None where there is none.

        An entry that is not what was put is named in the log and removed, so that the item is done again. One that this
        user may not read counts as absent.
        """
        entry = self.entry(key)
        if not os.path.lexists(entry):
            return None
        try:
            problem = damage(entry, key)
        except PermissionError:
            return None
        if problem:
            log("warning", reason=f"{entry} is damaged ({problem})", remedy="the item is done again", damaged=key)
            self._discard(entry)
            return None
        return entry

    def partial(self, key: str) -> Path:
        """Where an unfinished long item keeps its state. Forgotten when the item is put into the store."""
        path = self.root / "partial" / f"{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the store's file system, gone afterwards unless `put` took it."""
        folder = self._unused_name()
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes that were killed weeks ago left: items in staging, states of long items."""
        for left in (*self.root.glob("staging/*"), *self.root.glob("partial/*")):
            with suppress(OSError):  # another process may be sweeping too
                if time.time() - left.lstat().st_mtime > LEFT_BEHIND:
                    remove(left)

    def put(self, key: str, folder: Path, anew: bool = False) -> Path:
        """Make `folder` the entry of `key`, in the place of one that is there where `anew`; return where the item is now.

        That is the entry, also where another process was faster. It is `folder` itself, and the log says so, where something
        else stands in the entry's place and cannot be removed. Raises StoreRemoved.
        """
        with in_store(folder):
            write_seal(folder, key)
            sync(folder)
            if anew:
                self._discard(self.entry(key))
            # What is in the way may be damaged: then `find` removes it.
            place = self._move(folder, key) or self.find(key) or self._move(folder, key) or folder
        if place == folder:
            reason = f"{self.entry(key)} cannot be written"
            log("warning", reason=reason, remedy="the item is done, but not kept: mend the permissions of the store")
        with suppress(OSError):  # the state of another user
            self.partial(key).unlink(missing_ok=True)
        return place

    def _move(self, folder: Path, key: str) -> Path | None:
        """Move a folder to the place of an entry; None where something is there, or another user allows no entry there."""
        entry = self.entry(key)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(entry)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise
            return None
        sync_folder(entry.parent)
        return entry

    def _discard(self, entry: Path) -> None:
        """Take an entry out of the store, in one step for those who look for it."""
        removed = self._unused_name()
        with suppress(OSError):  # of another user: it stays, and is not used
            entry.rename(removed)
        remove(removed)

    def _unused_name(self) -> Path:
        staging = self.root / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        return staging / uuid.uuid4().hex


def write_seal(folder: Path, key: str) -> None:
    """Leave the key and the digest of each file in a folder that is to become an entry, and make its files read-only."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    seal = {"key": key, "files": {name: file_digest(path) for name, path in sorted(files.items())}}
    (folder / SEAL).write_text(json.dumps(seal))
    for path in (*files.values(), folder / SEAL):
        path.chmod(0o444)


def read_seal(entry: Path) -> tuple[str, dict[str, str]]:
    """The key of an entry, and the digests of its files by name. Raises OSError, ValueError, KeyError, TypeError."""
    seal = json.loads(read_plain(entry / SEAL, LONGEST_SEAL))
    return seal["key"], dict(seal["files"])


def damage(entry: Path, key: str) -> str:
    """What is wrong with an entry: files that are missing, changed, or another item's; empty where it is as it was put."""
    there = {path.relative_to(entry).as_posix(): path for path in entry.rglob("*") if path.is_symlink() or not path.is_dir()}
    if strange := [name for name, path in there.items() if path.is_symlink() or not path.is_file()]:
        return f"{min(strange)} is no plain file"
    try:
        sealed_key, digests = read_seal(entry)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"its {SEAL} cannot be read"
    if sealed_key != key:
        return "it is the entry of another item"
    if strange := there.keys() ^ {*digests, SEAL}:
        return f"{min(strange)} is {'missing' if min(strange) in digests else 'not part of it'}"
    try:
        changed = next((name for name, digest in digests.items() if file_digest(entry / name) != digest), "")
    except PermissionError:
        raise
    except OSError as error:
        return f"{error.filename or 'a file of it'} cannot be read"
    return f"{changed} has changed" if changed else ""


def publish(entry: Path, output: Path) -> dict[str, str]:
    """Put an entry's files to their places: members first, the declared one last.

    Returns the SHA-256 of each by its name from the output's folder on. Raises ItemError where something stands in a place
    that no file can take, StoreRemoved.

    Whatever becomes of the published files, the entry stays as it is. They keep the time at which the item was finished, so
    times stay in the order of the work. Of several processes that publish at one output the last one's files stand.
    """
    declared = f"{STEM}{output.suffix}"
    index = index_path(Path(declared)).name
    files = [path for path in sorted(entry.rglob("*")) if path.is_file() and path.name != SEAL]
    files.sort(key=lambda path: (path.name == declared, path.name == index))
    if not files:
        raise StoreRemoved(entry)
    targets = {path: member_path(output, path.relative_to(entry).as_posix().removeprefix(STEM)) for path in files}
    if fault := next(filter(None, map(_in_the_way, targets.values())), ""):
        raise ItemError(fault, "remove it, or choose another output")
    output.parent.mkdir(parents=True, exist_ok=True)
    published = {}
    with in_store(entry), locked(output.parent):
        _, digests = read_seal(entry)
        for path, target in targets.items():
            place(path, target, linked=path.suffix in LINKED)
            name = path.relative_to(entry).as_posix()
            published[target.relative_to(output.parent).as_posix()] = digests[name]
    return published


def _in_the_way(target: Path) -> str:
    """What stands where a file, or a folder above it, is to be; empty where nothing does."""
    if target.is_dir() and not target.is_symlink():
        return f"{target} is a folder"
    return folder_fault(target.parent) or ""


@contextmanager
def in_store(folder: Path) -> Iterator[None]:
    """Raises StoreRemoved in the place of what goes wrong because a folder of the store is no longer there."""
    try:
        yield
    except FileNotFoundError as error:
        if folder.exists():
            raise
        raise StoreRemoved(folder) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from publishing into a folder, for as long as any of them needs for it.

    Where its file system has no locks, or somebody keeps it, nobody is kept out. The log says who is waited for.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            start, next_word = time.monotonic(), FIRST_WORD
            while not try_lock(descriptor) and (waited := time.monotonic() - start) < LONGEST_LOCK:
                if waited > next_word:
                    reason = f"{folder}, into which results are to be put, is locked by {holder(descriptor)}"
                    log("warning", reason=reason, remedy=f"it is waited for, {LONGEST_LOCK:g} s in all")
                    next_word = LONGEST_LOCK
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def place(source: Path, target: Path, linked: bool) -> None:
    """Put a file at `target` too, in one step: as a hard link where that is wanted and can be, else as a copy."""
    with replacing(target) as temporary:
        if not linked or not link(source, temporary):
            copy_file(source, temporary)


def link(source: Path, target: Path) -> bool:
    """Make a hard link; False where the file system has none, or the two are on different ones."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        return False
    return True


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its time, as one that may be written; it shares the disk's blocks where the file system can."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        with suppress(OSError):  # file systems that cannot, or only within themselves; a full disk is met again below
            while os.copy_file_range(reader.fileno(), writer.fileno(), 2**30):
                pass
        if os.fstat(writer.fileno()).st_size != os.fstat(reader.fileno()).st_size:
            reader.seek(0)
            writer.seek(0)
            shutil.copyfileobj(reader, writer, 2**20)
    state = source.stat()
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


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
