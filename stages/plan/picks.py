"""Files of picks: what a person has chosen on the page of a run. A line per film says which to keep and which to leave out.

A line is the clip that makes this film, as in clips.jsonl, with the clip that it is a take of (`take_of`), the `film`, its
`mark` (star, reject or empty) and a `note`, and for a chain the `picks` of its links. So the file is a list of clips too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.plan.links import by_link, link_number_fault
from stages.plan.names import is_id, with_digest
from stages.plan.takes import without_take
from stages.runtime.errors import UsageError, first_of, shown, text_remedy
from stages.runtime.text import read_jsonl

if TYPE_CHECKING:
    from stages.plan.resolve import Clip

ENDING = ".jsonl"
STAR, REJECT = "star", "reject"
MARKS = (STAR, REJECT, "", None)
OF_PICKS = ("take_of", "film", "mark", "note")  # keys of a row that are no inputs and no options

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
    found = _with_take_of(rows)
    if wrong := next(((place, row["mark"]) for place, row in found if row.get("mark") not in MARKS), None):
        raise UsageError(f"mark of {wrong[0]} is {shown(wrong[1])}", f"it must be {STAR}, {REJECT} or empty")
    starred = {row["take_of"] for _, row in found if row.get("mark") == STAR} - {None}
    chosen = [
        (place, row)
        for place, row in found
        if row.get("mark") == STAR or (row.get("mark") != REJECT and row["take_of"] not in starred)
    ]
    if found and not chosen:
        raise UsageError(f"{found[0][0]} is rejected, and so is every other clip of this list", "keep one of them")
    return chosen


def _with_take_of(rows: Iterable[Row]) -> list[Row]:
    """The rows with the clip that each is a take of, None for a row without an id. Raises UsageError.

    A row of an older file does not say it: it is the take that its id says if that clip is in the file too.
    """
    found = list(rows)
    ids = {row["id"] for _, row in found if isinstance(row.get("id"), str)}
    return [(place, {**row, "take_of": _take_of(row, ids, place)}) for place, row in found]


def _take_of(row: Mapping[str, Any], ids: Collection[str], place: str) -> str | None:
    identity, clip = row.get("id"), row.get("take_of")
    if not (clip is None or isinstance(clip, str)):
        raise UsageError(f"take_of of {place} is {shown(clip)}", "it must be the id of a clip")
    if clip or not isinstance(identity, str):
        return clip or None
    clip = without_take(identity)
    return clip if clip in ids else identity


def as_clips(rows: Iterable[Row], has_links: bool) -> list[Row]:
    """Rows of picks as clips that are made once more, without the picks of their links if these clips have none."""
    found = []
    for place, row in rows:
        left_out = OF_PICKS if has_links or "mark" not in row else (*OF_PICKS, "picks")
        found.append((place, {key: value for key, value in row.items() if key not in left_out}))
    return found


def as_sources(rows: Iterable[Row], path: str, warnings: list[str]) -> list[Row]:
    """Kept rows of the picks in `path` as clips that continue their films. Those without a film are left out with a warning.

    Raises UsageError if none has a film.
    """
    sources: list[Row] = []
    without: list[str] = []
    for place, row in rows:
        film = row.get("film") or ""
        if not isinstance(film, str):
            raise UsageError(f"film of {place} is {shown(film)}", text_remedy(film))
        if film.strip():
            sources.append((place, {"id": _id_of_source(row), "video": film}))
        else:
            without.append(str(row.get("id", place)))
    if not sources:
        raise UsageError(f"no clip that {path} keeps has a film", "make films, and export the picks of their run anew")
    if without:
        warnings.append(f"clips of {path} without a film are left out: {first_of(without)}")
    return sources


def _id_of_source(row: Mapping[str, Any]) -> Any:
    """The id of a clip that continues a film. It is not that of a take, so that the clip may have takes of its own."""
    identity, clip = row.get("id"), row["take_of"]
    if not (isinstance(identity, str) and identity.startswith(f"{clip}.")):
        return identity
    plain = f"{clip}-{identity.removeprefix(f'{clip}.')}"
    return plain if is_id(plain) else with_digest(plain, plain)
