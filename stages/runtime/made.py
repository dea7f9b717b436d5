"""What a result was made of, written beside it: by that, and by nothing else, a plan knows whether it is current."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.runtime.errors import ItemError
from stages.runtime.files import read_plain, replacing
from stages.runtime.model import cached_file_digest

LARGEST_RECORD = 1 << 24  # bytes


@dataclass(frozen=True)
class Made:
    """The record of a result.

    `fingerprint` stands for the work: stages, versions, models and options of the item and of all those before it.
    `sources` are the users' files that it was made of, as (path, SHA-256), in the order in which the items before it name
    them. `files` are the result's own files, by their names from its folder on: (size, time in ns, SHA-256).
    """

    fingerprint: str
    sources: Sequence[tuple[str, str]]
    files: Mapping[str, tuple[int, int, str]]

    @classmethod
    def of(cls, output: Path, fingerprint: str, sources: Sequence[tuple[str, str]], digests: Mapping[str, str]) -> Made:
        """The record of a result whose files lie at their places; `digests` are theirs, by name."""
        states = {name: os.stat(output.parent / name) for name in digests}
        files = {name: (states[name].st_size, states[name].st_mtime_ns, digest) for name, digest in digests.items()}
        return cls(fingerprint, sources, files)

    def changed(self, output: Path) -> list[str]:
        """The result's files that are missing or not what they were. Their times may differ, as after a copy."""
        return [name for name, state in self.files.items() if not _is_same(output.parent / name, *state)]

    def has_sources(self, paths: Sequence[str]) -> bool:
        """Whether users' files hold what the result was made of. A missing one of the same name cannot say otherwise."""
        if len(paths) != len(self.sources):
            return False
        return all(
            _digest(path) == digest or not os.path.lexists(path) and os.path.basename(path) == os.path.basename(recorded)
            for path, (recorded, digest) in zip(paths, self.sources)
        )


def made_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.made")


def write_made(output: Path, made: Made) -> None:
    with replacing(made_path(output)) as temporary:
        temporary.write_text(json.dumps(asdict(made), ensure_ascii=False))


def read_made(output: Path) -> Made | None:
    """The record of a result; None where there is none that can be read."""
    try:
        fields = json.loads(read_plain(made_path(output), LARGEST_RECORD))
        sources = [(str(path), str(digest)) for path, digest in fields["sources"]]
        files = {str(name): (int(size), int(time), str(digest)) for name, (size, time, digest) in fields["files"].items()}
        return Made(str(fields["fingerprint"]), sources, files) if output.name in files else None
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def one_content_each(sources: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each source once. Raises ItemError for one that had two contents when one stage after another read it."""
    known: dict[str, str] = {}
    for path, digest in sources:
        if known.setdefault(path, digest) != digest:
            raise ItemError(f"{path} was replaced after an earlier stage had read it", "run again")
    return list(known.items())


def _is_same(path: Path, size: int, time: int, digest: str) -> bool:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return False
    return state.st_size == size and (state.st_mtime_ns == time or _digest(path) == digest)


def _digest(path: str | Path) -> str:
    """SHA-256 of a file; empty where it cannot be read."""
    try:
        return cached_file_digest(Path(path))
    except (OSError, ValueError):
        return ""
