"""Files of picks: what a person has chosen on the page of a run. A line per film says which to keep and which to leave out.

A line is the clip that makes this film, as in clips.jsonl, with the `film`, its `mark` (star, reject or empty) and a `note`,
and for a chain the `picks` of its links. So the file is a list of clips too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.plan.links import by_link, link_number_fault
from stages.plan.takes import id_of_clip
from stages.runtime.errors import UsageError, shown
from stages.runtime.text import read_jsonl

if TYPE_CHECKING:
    from stages.plan.resolve import Clip

ENDING = ".jsonl"
STAR, REJECT = "star", "reject"
MARKS = (STAR, REJECT, "", None)
OF_PICKS = ("film", "mark", "note")  # keys of a row that are no inputs and no options

Row = tuple[str, dict[str, Any]]  # where a row is, and the row


def is_picks_file(text: str) -> bool:
    return text.lower().endswith(ENDING)


def read_picks(path: str) -> list[Row]:
    """The rows of a file of picks. Raises UsageError."""
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise UsageError(f"the file of picks {path} does not exist", "export it on the page of a run, or mend the path")
    if not (rows := list(read_jsonl(file))):
        raise UsageError(f"the file of picks {path} is empty", "export it on the page of a run")
    return rows


def picks_by_clip(path: str) -> dict[str, list[str]]:
    """The picked takes of links in a file, each as LINK: TAKE, by the clip. Raises UsageError."""
    path = os.path.expanduser(path)
    state = os.stat(path) if os.path.isfile(path) else None
    return _picks_by_clip(path, state and (state.st_mtime_ns, state.st_size))


@lru_cache(maxsize=8)  # files that the clips of a run take in turn
def _picks_by_clip(path: str, state: tuple[int, int] | None) -> dict[str, list[str]]:
    """The picks in a file that is in this state: all clips of a run look for theirs."""
    found: dict[str, list[str]] = {}
    for place, row in read_picks(path):
        clip, picks = row.get("id"), row.get("picks", [])
        if not isinstance(clip, str):
            raise UsageError(f"{place} names no clip in id", "export the picks on the page of a run")
        if clip in found:
            raise UsageError(f"{place} names clip {clip} again", "keep one of the lines")
        check_picks(picks, f"picks of {place}")
        found[clip] = picks
    return found


def check_picks(picks: Any, place: str) -> None:
    """Raise UsageError for anything but a list of LINK: TAKE with a link at most once."""
    if not isinstance(picks, list) or not all(isinstance(one, str) for one in picks):
        raise UsageError(f"{place} is {shown(picks)}", 'write ["LINK: TAKE", ...]')
    for text in picks:
        if fault := link_number_fault(text):
            raise UsageError(f"{place} has {shown(text)}", fault)
    by_link(picks, place)


def unmatched_picks(run: str, clips: Sequence[Clip]) -> list[str]:
    """A warning for each file in option `pick` that names none of the run's clips. Raises UsageError."""
    listed = (file for clip in clips for file in clip.values["recipe"].get("pick", ()) if is_picks_file(file))
    ids = {clip.id for clip in clips}
    return [
        f"the picks {file} name no clip of run {run}: they name {', '.join([*picks][:5])}"
        for file in dict.fromkeys(listed)
        if ids.isdisjoint(picks := picks_by_clip(file))
    ]


def kept(rows: Iterable[Row]) -> list[Row]:
    """The rows without those that are rejected; of a clip with starred takes, these alone.

    Raises UsageError for a wrong mark, and if all are rejected.
    """
    found = list(rows)
    if wrong := next(((place, row["mark"]) for place, row in found if row.get("mark") not in MARKS), None):
        raise UsageError(f"mark of {wrong[0]} is {shown(wrong[1])}", f"it must be {STAR}, {REJECT} or empty")
    starred = {_clip(row) for _, row in found if row.get("mark") == STAR}
    chosen = [
        (place, row)
        for place, row in found
        if row.get("mark") == STAR or (row.get("mark") != REJECT and not (starred and _clip(row) in starred))
    ]
    if found and not chosen:
        raise UsageError(f"{found[0][0]} is rejected, and so is every other clip of this list", "keep one of them")
    return chosen


def _clip(row: Mapping[str, Any]) -> Any:
    """The id of the clip of which a row is a take."""
    return id_of_clip(row["id"]) if isinstance(row.get("id"), str) else None


def as_clips(rows: Iterable[Row]) -> list[Row]:
    """Rows of picks as clips that are made once more."""
    return [(place, {key: value for key, value in row.items() if key not in OF_PICKS}) for place, row in rows]


def as_sources(rows: Iterable[Row]) -> list[Row]:
    """Rows of picks as clips that continue their films. Raises UsageError for a row without a film."""
    found = list(rows)
    if missing := next((place for place, row in found if not isinstance(row.get("film"), str)), ""):
        raise UsageError(f"{missing} names no film", "export the picks on the page of a run")
    return [(place, {"id": _plain(row.get("id")), "video": row["film"]}) for place, row in found]


def _plain(identity: Any) -> Any:
    """An id that is not that of a take, so that the films that continue it may have takes of their own."""
    return identity.replace(".take", "-take") if isinstance(identity, str) else identity
