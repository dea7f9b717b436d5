"""What jobs in containers have to be told: environment variables of Apptainer, so that `--sdm apptainer` alone is enough.

A container sees the working directory and the system's temporary ones. All else that a job reads is bound at its own path,
read-only; there is no network; a GPU's driver comes in from outside.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from stages.runtime.model import cache_folder

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # Apptainer shows those of the machine
DEFAULTS = {"APPTAINER_NV": "1", "APPTAINER_NET": "1", "APPTAINER_NETWORK": "none"}


def environment(
    files: Iterable[str], models: Iterable[str], written: Iterable[str], surroundings: Mapping[str, str]
) -> dict[str, str]:
    """Variables for jobs that read these files and models' folders, and write below some folders, which are made.

    What the `surroundings` say already is kept, so a site may set any of them otherwise.
    """
    hub, cache = surroundings.get("HF_HOME") or str(Path.home() / ".cache/huggingface"), str(cache_folder())
    written = [*written, cache]
    for folder in (hub, *written):
        Path(folder).mkdir(parents=True, exist_ok=True)  # what is not there cannot be bound
    weights = [str(path) for folder in models for path in (Path(folder), *Path(folder).rglob("*"))]
    seen = {place for path in [*files, *(path for path in weights if os.path.islink(path))] for place in visible_by(path)}
    seen |= {hub, *map(os.path.abspath, models)}
    binds = [bind(place, "ro") for place in outermost(seen)]
    binds += [bind(place, "rw") for place in outermost(map(os.path.abspath, written)) if not is_shown(place)]
    given = [surroundings["APPTAINER_BIND"]] if surroundings.get("APPTAINER_BIND") else []
    kept = {name: surroundings.get(name, value) for name, value in DEFAULTS.items()}
    return {"HF_HOME": hub, "KINEMAKE_CACHE": cache, **kept, "APPTAINER_BIND": ",".join([*given, *binds])}


def visible_by(path: str) -> set[str]:
    """The folders by which a file is seen, and what its links lead to; the file alone where its folder holds the work."""
    places = {os.path.abspath(path), os.path.realpath(path)}
    alone = {place for place in places if os.path.isdir(place) or is_inside(os.getcwd(), os.path.dirname(place))}
    return {place if place in alone else os.path.dirname(place) for place in places if not is_shown(place)}


def is_shown(path: str) -> bool:
    """Whether a container sees a path anyway."""
    return any(is_inside(path, place) for place in (os.getcwd(), *TEMPORARY))


def is_inside(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def outermost(paths: Iterable[str]) -> list[str]:
    """Those of the paths that lie in no other one of them, in order."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: Path(path).parts):
        if not (kept and is_inside(path, kept[-1])):
            kept.append(path)
    return kept


def bind(path: str, mode: str) -> str:
    """How Apptainer writes that a path is bound as it is; a comma and a colon have a meaning to it."""
    name = path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
    return f"{name}:{name}:{mode}"
