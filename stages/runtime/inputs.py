"""Open the inputs of an item: validated artifacts or the user's own files, and their digests for the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.runtime import artifacts
from stages.runtime.artifacts import KINDS, Artifact, Failure
from stages.runtime.errors import ItemError
from stages.runtime.files import file_fault
from stages.runtime.model import cached_file_digest


class PassedOn(Exception):
    """An input of the item is a failure of an earlier stage."""

    def __init__(self, failure: Failure):
        self.failure = failure


def open_input(value: str | list[str], kinds: tuple[str, ...]) -> Artifact | Path | list:
    """A validated artifact, or the path of a user's own file if the stage takes one. Raises ItemError."""
    if isinstance(value, list):
        return [open_input(one, kinds) for one in value]
    path = Path(value)
    typed = [kind for kind in kinds if kind != "file"]
    if "file" in kinds and not any(may_hold(path, kind) for kind in typed):
        check_is_file(path)
        return path
    return artifacts.read(path, typed)


def may_hold(path: Path, kind: str) -> bool:
    """Whether a path is that of an artifact of a kind, by its ending; a film is told from other videos by its index."""
    if kind == "film" and path.suffix == KINDS[kind].suffix:
        try:
            return artifacts.read_description(path).kind == kind
        except ItemError:
            return False
    return path.suffix == KINDS[kind].suffix


def iter_inputs(inputs: Mapping[str, Any]) -> Iterator[Artifact | Path]:
    for opened in inputs.values():
        yield from opened if isinstance(opened, list) else [opened]


def file_option(path: str) -> str:
    """Digest of the file that an option names. Raises ItemError."""
    check_is_file(Path(path))
    return digest(Path(path))


def check_is_file(path: Path) -> None:
    if fault := file_fault(path):
        raise ItemError(f"{path} {fault}", "mend the path, or its permissions")


def digest(opened: Artifact | Path) -> str:
    """SHA-256 of an input, or of the file of an option. Raises ItemError if it is no longer readable."""
    try:
        return opened.digest if isinstance(opened, Artifact) else cached_file_digest(opened)
    except OSError as error:
        path = opened.path if isinstance(opened, Artifact) else opened
        raise ItemError(f"{path} cannot be read ({error.strerror})", "check the disk that it is on") from None


def digests(inputs: Mapping[str, Any]) -> dict[str, list[str]]:
    """Digests of the inputs, by name. Raises ItemError."""
    return {name: [digest(one) for one in iter_inputs({name: opened})] for name, opened in inputs.items()}
