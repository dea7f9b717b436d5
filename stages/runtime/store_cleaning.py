"""Find out which entries of a store results use, and remove others.

A run notes its results folder in the store, so that the entries of all results that use a store are known. Every process
that reads or writes the store holds a shared lock on it; entries are removed under the exclusive lock alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stages.runtime import artifacts
from stages.runtime.errors import ItemError, JobError
from stages.runtime.files import file_fault, read_plain, remove, replacing
from stages.runtime.locks import LOCK, holder, is_locked, open_lock, try_lock
from stages.runtime.store import Store

NOTES = "results"  # folder in the store with a file per results folder that uses it
LONGEST_PATH = 1 << 16  # bytes


@dataclass(frozen=True)
class Entry:
    """An entry of a store: its folder, the bytes of its files, and when it was last read or written, in s since 1970."""

    folder: Path
    bytes: int
    time: float

    @property
    def key(self) -> str:
        return self.folder.name


@dataclass
class Usage:
    """The entries of a store.

    Attributes:
        entries: all entries, by key.
        runs: the keys that each run uses, by the run's folder.
        missing: results folders that have used the store and are not there.
    """

    entries: dict[str, Entry]
    runs: dict[Path, set[str]] = field(default_factory=dict)
    missing: list[Path] = field(default_factory=list)

    def bytes_of(self, keys: set[str]) -> int:
        return sum(self.entries[key].bytes for key in keys & self.entries.keys())

    @property
    def used(self) -> set[str]:
        return set().union(*self.runs.values())

    @property
    def unused(self) -> list[Entry]:
        """The entries that no result uses, the one that was not read for the longest time first."""
        used = self.used
        return sorted((one for key, one in self.entries.items() if key not in used), key=lambda entry: entry.time)


def note_results(store: Path, results: Path) -> None:
    """Note in a store that a results folder uses it. Raises OSError."""
    note, path = note_path(store, results), os.fsencode(os.path.abspath(results))
    if file_fault(note) or note.read_bytes() != path:
        with replacing(note) as temporary:
            temporary.write_bytes(path)


def note_path(store: Path, results: Path) -> Path:
    """The place of the note of a results folder in a store."""
    return store / NOTES / hashlib.sha256(os.fsencode(os.path.abspath(results))).hexdigest()[:16]


def noted_results(store: Store) -> list[Path]:
    """The results folders that use a store. Raises OSError for a note that cannot be read."""
    notes = sorted((store.root / NOTES).glob("*"))
    return [Path(os.fsdecode(read_plain(note, LONGEST_PATH))) for note in notes if not note.name.startswith(".")]


def usage(store: Store) -> Usage:
    """Which entries there are, and which results use them. Raises JobError for results that cannot be read."""
    found = Usage({entry.key: entry for entry in entries(store)})
    try:
        for results in noted_results(store):
            if not results.is_dir():
                found.missing.append(results)
                continue
            for folder in sorted(path for path in results.iterdir() if path.is_dir() and path != store.root.absolute()):
                if keys := set(keys_in(folder)):
                    found.runs[folder] = keys
    except OSError as error:
        remedy = "make it readable: what it uses is not known otherwise"
        raise JobError(f"{error.filename} cannot be read ({error.strerror})", remedy) from None
    return found


def entries(store: Store) -> Iterator[Entry]:
    for folder in store.root.glob("??/*"):
        try:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield Entry(folder, size, folder.stat().st_mtime)
        except FileNotFoundError:  # removed meanwhile
            continue


def keys_in(folder: Path) -> Iterator[str]:
    """The keys of all items that the results in a folder were made of. Raises OSError for what cannot be read."""
    for place, _, names in os.walk(folder, onerror=_raise):
        for name in names:
            if name.endswith((".json", ".safetensors")):
                yield from keys_of(Path(place, name))


def keys_of(path: Path) -> Iterator[str]:
    try:
        description = artifacts.read_description(path)
    except ItemError:  # another file, such as plan.json, or a result that cannot be used any more
        if os.path.exists(path) and not os.access(path, os.R_OK):
            raise PermissionError(13, "Permission denied", str(path)) from None
        return
    yield from (record["key"] for record in description.provenance)


def _raise(error: OSError) -> None:
    raise error


def clean(store: Store, limit: int, forget_missing: bool = False, dry_run: bool = False) -> tuple[Usage, list[Entry]]:
    """Remove entries that no result uses, until those left have at most `limit` bytes. Returns the usage before, and them.

    The entries that were not read for the longest time go first. Raises JobError while a run or a stage uses the store, for
    results that cannot be read, and unless `forget_missing` for results folders that are missing.
    """
    with exclusive(store):
        before = usage(store)
        if before.missing and not forget_missing:
            raise JobError(
                f"{before.missing[0]}, a results folder that has used {store.root}, is not there",
                "bring it back, or give --forget-missing to remove what it used",
            )
        total, removed = before.bytes_of(set(before.entries)), []
        for entry in before.unused:
            if total <= limit:
                break
            total -= entry.bytes
            removed.append(entry)
        if dry_run:
            return before, removed
        discarded = [store.discard(entry.folder) for entry in removed]
        for results in before.missing:
            note_path(store.root, results).unlink(missing_ok=True)
    for folder in discarded:  # which takes long for many bytes
        remove(folder)
    return before, removed


@contextmanager
def exclusive(store: Store) -> Iterator[None]:
    """Hold the store alone. Raises JobError if a run or a stage uses it, or on a file system without locks."""
    remedy = "clean it when the runs have ended"
    if running := next((folder for folder in noted_results(store) if is_locked(folder / LOCK)), None):
        raise JobError(f"{store.root} is in use by the run in {running}", remedy)
    descriptor = open_lock(store.root / LOCK, writable=True)
    try:
        if not try_lock(descriptor):
            raise JobError(f"{store.root} is in use by {holder(descriptor)}", remedy)
        yield
    except OSError as error:
        if error.filename:
            raise
        raise JobError(f"{store.root} cannot be locked ({error.strerror})", "remove the whole store instead") from None
    finally:
        os.close(descriptor)
