"""The record beside a result: the inputs that produced it. The plan decides from it alone whether the result is current."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stages.runtime.files import read_plain, replacing
from stages.runtime.model import cached_file_digest

LARGEST_RECORD = 1 << 24  # bytes
Contents = Sequence[tuple[str, str]]  # names and digests


@dataclass(frozen=True)
class ResultRecord:
    """The record of a result.

    Attributes:
        fingerprint: digest of the work: stages, versions, models and options of the item and of all earlier ones.
        sources: the user's files, as (path, SHA-256).
        weights: the files of models, as (MODEL for STAGE, digest). Both lists are in the order of the work.
        files: the result's own files, by path relative to its folder: (size in bytes, mtime in ns, SHA-256).
        whole: False if the item, or an earlier one, was made without something that failed: the next plan tries that again.
    """

    fingerprint: str
    sources: Contents
    weights: Contents
    files: Mapping[str, tuple[int, int, str]]
    whole: bool = True

    @classmethod
    def of(
        cls,
        output: Path,
        fingerprint: str,
        sources: Contents,
        weights: Contents,
        digests: Mapping[str, str],
        whole: bool = True,
    ) -> ResultRecord:
        """The record of a published result. `digests` are those of its files, by name."""
        states = {name: os.stat(output.parent / name) for name in digests}
        files = {name: (states[name].st_size, states[name].st_mtime_ns, digest) for name, digest in digests.items()}
        return cls(fingerprint, sources, weights, files, whole)

    def changed(self, output: Path) -> list[str]:
        """The result's files that are missing or have other content. Their times may differ, as after a copy."""
        return [name for name, state in self.files.items() if not _is_same(output.parent / name, *state)]

    def has_sources(self, paths: Sequence[str]) -> bool:
        """Whether the user's files have the recorded content. A missing file counts as unchanged if its name is the same."""
        if len(paths) != len(self.sources):
            return False
        return all(
            _digest(path) == digest or (not os.path.lexists(path) and os.path.basename(path) == os.path.basename(recorded))
            for path, (recorded, digest) in zip(paths, self.sources)
        )

    def has_weights(self, digests: Sequence[str]) -> bool:
        """Whether the model files have the recorded digests. An empty digest, for missing files, counts as unchanged."""
        recorded = [digest for _, digest in self.weights]
        return len(digests) == len(recorded) and all(now in ("", then) for now, then in zip(digests, recorded))


def record_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.record")


def write_record(output: Path, record: ResultRecord) -> None:
    with replacing(record_path(output)) as temporary:
        temporary.write_text(json.dumps(asdict(record), ensure_ascii=False))


def read_record(output: Path) -> ResultRecord | None:
    """The record of a result, or None if it is missing or unreadable."""
    try:
        fields = json.loads(read_plain(record_path(output), LARGEST_RECORD))
        sources, weights = ([(str(one), str(digest)) for one, digest in fields[name]] for name in ("sources", "weights"))
        files = {str(name): (int(size), int(time), str(digest)) for name, (size, time, digest) in fields["files"].items()}
        whole = fields.get("whole", True) is True
        return ResultRecord(str(fields["fingerprint"]), sources, weights, files, whole) if output.name in files else None
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _is_same(path: Path, size: int, time: int, digest: str) -> bool:
    """Whether a file has the digest. Its time says so, unless the file system knows whole seconds only."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return False
    is_untouched = state.st_mtime_ns == time and time % 10**9 != 0
    return state.st_size == size and (is_untouched or _digest(path) == digest)


def _digest(path: str | Path) -> str:
    """SHA-256 of a file; "" if it is unreadable."""
    try:
        return cached_file_digest(Path(path))
    except (OSError, ValueError):
        return ""
