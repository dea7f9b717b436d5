"""The store: finished items, under the hash of everything that their result depends on.

An entry is a folder `<2 hex>/<key>/` that holds `artifact.<ending>`, its members, and `seal.json` with the key and the
digest of each file. It is written elsewhere, synced, and then renamed, so that an entry is complete or absent whatever kills
the process. It is checked against its seal before use. The store only saves work and may be deleted at any time.

Files are copied out of the store, so that editing a result does not change the entry. Lossless videos are read-only hard
links instead: they are by far the largest files and no stage's declared output.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from stages.runtime.artifacts import file_digest, index_path, member_path
from stages.runtime.errors import ItemError
from stages.runtime.files import read_plain, remove, replacing
from stages.runtime.locks import LOCK, holder, open_lock, try_lock, wait_for_lock
from stages.runtime.log import log
from stages.runtime.places import folder_fault, output_fault, writing_fault

STEM = "artifact"
SEAL = "seal.json"
LONGEST_SEAL = 256 * 2**20  # bytes; a million files are less
SYNCED_AT_ONCE = 16
LINKED = (".mkv",)  # Snakemake refuses declared outputs that are read-only
FIRST_MESSAGE, LONGEST_LOCK = 2.0, 20.0  # seconds of waiting, until the log line and at most
ABANDONED_AFTER = 14 * 24 * 3600  # seconds; no item takes that long
# The last two: an entry of another user.
IN_THE_WAY = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EACCES, errno.EPERM}
CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES}


class StoreRemoved(ItemError):
    """The store, or an entry of it, was removed during the work on an item."""

    def __init__(self, place: Path):
        super().__init__(f"{place} was removed while it was in use", "leave the store where it is until the run has ended")


class Store:
    """A store in the folder `root`, which is created on first use."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def entry(self, key: str) -> Path:
        return self.root / key[:2] / key

    def find(self, key: str) -> Path | None:
        """The validated entry of `key`, or None.

        A damaged entry is logged and removed, so that the item is made again. An entry that this user may not read counts as
        absent.
        """
        entry = self.entry(key)
        if not os.path.lexists(entry):
            return None
        try:
            problem = damage(entry, key)
        except PermissionError:
            return None
        if problem:
            log("warning", reason=f"{entry} is damaged ({problem})", remedy="the item is made again", damaged=key)
            remove(self.discard(entry))
            return None
        with suppress(OSError):  # the entry of another user
            os.utime(entry)  # when it was last read, for those who clean the store; its files keep their times
        return entry

    def fault(self) -> str | None:
        """Reason why nothing can be added to the store, or None. The folder is created if missing."""
        inside = (output_fault(self.root / name / "any") for name in ("staging", "partial"))
        return writing_fault(self.root) or next(filter(None, inside), None)

    def partial(self, key: str) -> Path:
        """Place for the state of this user's unfinished item, a file or a folder of files. `put` removes it.

        Two users who make the same item at the same time have separate states.
        """
        path = self.root / "partial" / f"{key}.{os.getuid()}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the store together with others, so that nobody cleans it. Without locks in the file system nobody can."""
        descriptor = open_lock(self.root / LOCK, writable=True)  # for all users
        try:
            with suppress(OSError):
                wait_for_lock(descriptor, shared=True)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the file system of the store. It is removed afterwards unless `put` has moved it."""
        folder = self._unused_name()
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self) -> None:
        """Remove leftovers of processes that were killed weeks ago: staged items and states of long items."""
        for left in (*self.root.glob("staging/*"), *self.root.glob("partial/*")):
            with suppress(OSError):  # another process may be sweeping too
                if time.time() - left.lstat().st_mtime > ABANDONED_AFTER:
                    remove(left)

    def put(self, key: str, folder: Path, anew: bool = False) -> Path:
        """Make `folder` the entry of `key`, and return the item's path. With `anew`, replace an existing entry.

        The path is that of the entry, also if another process was faster. If something irremovable occupies the entry's
        path, that is logged and the path is `folder`. Raises StoreRemoved.
        """
        with in_store(folder):
            write_seal(folder, key)
            sync(folder)
            if anew:
                remove(self.discard(self.entry(key)))
            # A damaged entry may be in the way; `find` removes it.
            place = self._move(folder, key) or self.find(key) or self._move(folder, key) or folder
        if place == folder:
            reason = f"{self.entry(key)} cannot be written"
            log("warning", reason=reason, remedy="the item is made, but not kept: mend the permissions of the store")
        remove(self.partial(key))
        return place

    def _move(self, folder: Path, key: str) -> Path | None:
        """Rename a folder to an entry. None if the entry exists, or belongs to another user who allows no write."""
        entry = self.entry(key)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(entry)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise
            return None
        sync_path(entry.parent)
        return entry

    def discard(self, entry: Path) -> Path:
        """Take an entry out of the store, in one step for other processes. Returns the folder that is left to remove."""
        removed = self._unused_name()
        with suppress(OSError):  # the entry of another user stays, unused
            entry.rename(removed)
        return removed

    def _unused_name(self) -> Path:
        staging = self.root / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        return staging / uuid.uuid4().hex


def write_seal(folder: Path, key: str) -> None:
    """Write the seal (key, digest of each file) of a future entry, and make its files read-only."""
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
    """Description of the damage of an entry (missing, changed or foreign files); "" if it is intact.

    Raises PermissionError if this user may not read all of it.
    """
    found = [entry, *entry.rglob("*")]
    folders = [path for path in found if path.is_dir() and not path.is_symlink()]
    for folder in folders:
        if not os.access(folder, os.R_OK | os.X_OK):  # its files would count as missing
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    there = {path.relative_to(entry).as_posix(): path for path in found if path not in folders}
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
    if unlisted := there.keys() ^ {*digests, SEAL}:
        return f"{min(unlisted)} is {'missing' if min(unlisted) in digests else 'not part of it'}"
    try:
        changed = next((name for name, digest in digests.items() if file_digest(entry / name) != digest), "")
    except PermissionError:
        raise
    except OSError as error:
        return f"{error.filename or 'a file of it'} cannot be read"
    return f"{changed} has changed" if changed else ""


def publish(
    entry: Path,
    output: Path,
    rename: Callable[[Path], bool] | None = None,
    then: Callable[[Mapping[str, str]], None] | None = None,
) -> None:
    """Copy or link the files of an entry to the output: members first, the declared file last.

    `rename` may change the copy of the description, and returns whether it did. `then` is called with the SHA-256 of each
    file, by path relative to the output's folder, before another process can publish there.

    Raises ItemError if a path is occupied by something that a file cannot replace, and StoreRemoved.

    The entry stays unchanged whatever happens to the published files. They keep the time at which the item was finished, so
    that times follow the order of the work. If several processes publish to one output, the last one wins.
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
            digest = digests[path.relative_to(entry).as_posix()]
            if rename and path.name == index:
                digest = place_renamed(path, target, rename) or digest
            else:
                place(path, target, linked=path.suffix in LINKED)
            published[target.relative_to(output.parent).as_posix()] = digest
        if then:
            then(published)


def _in_the_way(target: Path) -> str:
    """Description of a folder at a file's path, or of a file at a folder's path above it; "" if there is neither."""
    if target.is_dir() and not target.is_symlink():
        return f"{target} is a folder"
    return folder_fault(target.parent) or ""


@contextmanager
def in_store(folder: Path) -> Iterator[None]:
    """Turn an error that comes from a removed folder of the store into StoreRemoved."""
    try:
        yield
    except FileNotFoundError as error:
        if folder.exists():
            raise
        raise StoreRemoved(folder) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against publishing by other processes.

    The wait is bounded: on a file system without locks, or if a process holds the lock for too long, it goes on without the
    lock. The log names the process that holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            start, next_message = time.monotonic(), FIRST_MESSAGE
            while not try_lock(descriptor) and (waited := time.monotonic() - start) < LONGEST_LOCK:
                if waited > next_message:
                    reason = f"{folder}, into which results are to be put, is locked by {holder(descriptor)}"
                    log("warning", reason=reason, remedy=f"it is waited for, {LONGEST_LOCK:g} s in all")
                    next_message = LONGEST_LOCK
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def place(source: Path, target: Path, linked: bool) -> None:
    """Put a file at `target` atomically: as a hard link if `linked` and possible, else as a copy."""
    with replacing(target) as temporary:
        if not linked or not link(source, temporary):
            copy_file(source, temporary)


def place_renamed(source: Path, target: Path, rename: Callable[[Path], bool]) -> str:
    """Put a copy at `target`, changed by `rename`. Returns its SHA-256, or "" if it equals `source`."""
    with replacing(target) as temporary:
        copy_file(source, temporary)
        changed = rename(temporary)
        keep_time(source, temporary)
        return file_digest(temporary) if changed else ""


def link(source: Path, target: Path) -> bool:
    """Create a hard link. False if the file system has none, or if the paths are on different ones."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        return False
    return True


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its time, as writable. The copy shares disk blocks if the file system can do that."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        with suppress(OSError):  # not supported here, or not across file systems; a full disk raises again below
            while os.copy_file_range(reader.fileno(), writer.fileno(), 2**30):
                pass
        if os.fstat(writer.fileno()).st_size != os.fstat(reader.fileno()).st_size:
            reader.seek(0)
            writer.seek(0)
            shutil.copyfileobj(reader, writer, 2**20)
    keep_time(source, target)


def keep_time(source: Path, target: Path) -> None:
    state = source.stat()
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


def sync(folder: Path) -> None:
    """Flush the files and names of a folder to the disk: side by side, because the disk writes what waits at once.

    `syncfs` would be one call, and would wait for everything that others write to the file system.
    """
    with ThreadPoolExecutor(SYNCED_AT_ONCE) as threads:
        list(threads.map(sync_path, (folder, *folder.rglob("*"))))


def sync_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
