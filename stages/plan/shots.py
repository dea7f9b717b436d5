"""Shot lists: films as lists of shots. A shot is a link of a chain with a prompt, a length, a seed and takes of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from stages.plan.links import TEXT
from stages.plan.takes import MOST_TAKES
from stages.runtime.errors import UsageError, did_you_mean, shown, text_remedy
from stages.runtime.text import read_jsonl, read_yaml

PREVIOUS = "previous"  # what a shot goes on from unless it says otherwise
KEYS = ("film", "shot", "prompt", "seconds", "frames", "seed", "takes", "from")
LIMITS: dict[str, tuple[tuple[type, ...], float, float]] = {  # types, least and largest value of each number
    "seconds": ((int, float), 0.01, 99_999),
    "frames": ((int,), 1, 999_999),
    "seed": ((int,), 0, 10**18 - 1),
    "takes": ((int,), 1, MOST_TAKES),
}
SEEDS = 10**6  # that are derived from names of shots
OPTIONS = ("links", "num_videos", "link_names", "link_prompts", "link_seeds", "link_frames", "link_takes", "link_sources")


def read_shots(path: str) -> list[tuple[str, dict[str, Any]]]:
    """The films of a shot list, JSONL or YAML, as clips of recipe chain, each with the place of its first shot.

    A shot without a film belongs to the one of the shot before, and the first to a film with the name of the file. Raises
    UsageError.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise UsageError(f"the shot list {path} does not exist", "mend the path")
    if file.suffix.lower() == ".jsonl":
        rows = list(read_jsonl(file))
    elif file.suffix.lower() in (".yaml", ".yml"):
        rows = list(_yaml_rows(file))
    else:
        raise UsageError(f"the shot list {path} ends with {file.suffix!r}", "it must be .yaml or .jsonl")
    films: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    film = file.stem
    for place, row in rows:
        check_shot(place, row)
        film = row.get("film", film)
        films.setdefault(film, []).append((place, row))
    return [(shots[0][0], film_of(name, shots)) for name, shots in films.items()]


def _yaml_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a YAML list, each with its place."""
    rows = read_yaml(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"the shot list {file} is no list of shots", "begin each shot with a dash: - shot: arrival")
    yield from ((f"shot {number} of {file}", row) for number, row in enumerate(rows, 1))


def check_shot(place: str, row: Mapping[str, Any]) -> None:
    """Raise UsageError for a shot with an unknown key, without a name, or with a value of the wrong type."""
    if unknown := [key for key in row if key not in KEYS]:
        hint = did_you_mean(str(unknown[0]), KEYS)
        raise UsageError(f"{place} has the key {shown(unknown[0])}", f"{hint} a shot has {', '.join(KEYS)}".strip())
    for key in ("film", "shot", "prompt", "from"):
        if key in row and not (isinstance(row[key], str) and row[key].strip()):
            raise UsageError(f"{key} of {place} is {shown(row[key])}", text_remedy(row[key]))
    for key in LIMITS:
        number: Any = row.get(key, 1)
        kinds, least, largest = LIMITS[key]
        if type(number) not in kinds or not least <= number <= largest:  # nan is in no range
            kind = "number" if float in kinds else "whole number"
            raise UsageError(f"{key} of {place} is {shown(number)}", f"it must be a {kind} from {least} to {largest}")
    if "shot" not in row:
        raise UsageError(f"{place} has no shot", "give it a name, such as shot: arrival")
    source = row.get("from", PREVIOUS)
    if source not in (PREVIOUS, TEXT) and not Path(source).suffix:
        raise UsageError(f"from of {place} is {shown(source)}", f"name a video or an image, {PREVIOUS} or {TEXT}")
    if "seconds" in row and "frames" in row:
        raise UsageError(f"{place} has both seconds and frames", "leave one of them out")


def check_options(options: Mapping[str, Any], run: str) -> None:
    """Raise UsageError for options of a run with a shot list that its shots say."""
    if given := [name for name in OPTIONS if name in options]:
        raise UsageError(f"run {run} has a shot list and the option {given[0]}", "say it in the shots, and leave it out")


def film_of(name: str, shots: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The clip of a film. A shot without a seed has one that its name decides, so that further shots do not change it.

    Raises UsageError for two shots of one name, and for a first shot without a source.
    """
    clip: dict[str, Any] = {"id": name, "links": len(shots)}
    places: dict[str, str] = {}
    for link, (place, shot) in enumerate(shots, 1):
        if (called := shot["shot"]) in places:
            raise UsageError(f"{place} has the name {shown(called)}, as {places[called]} has", "name shots apart")
        places[called] = place
        source = shot.get("from", PREVIOUS)
        if link == 1 and source == PREVIOUS:
            raise UsageError(
                f"{place} is the first shot of {name} and says no source", "add from: a video, an image, or text"
            )
        seconds = {"link_frames": f"{shot['seconds']}s"} if "seconds" in shot else {}
        values = {
            "link_names": called,
            "link_prompts": shot.get("prompt"),
            "link_seeds": shot.get("seed", f"+{1 + crc32(called.encode()) % SEEDS}"),
            "link_frames": shot.get("frames"),
            "link_takes": shot.get("takes"),
            "link_sources": None if source == PREVIOUS else os.path.expanduser(source),
            **seconds,
        }
        for option, value in values.items():
            if value is not None:
                clip.setdefault(option, []).append(f"{link}: {value}")
    return clip
