"""The environment variables of Apptainer, so that `--sdm apptainer` alone is enough to run the jobs in containers.

A container sees the working directory and the system's temporary folders. Everything else that a job reads is bound
read-only at its own path. There is no network. The GPU driver comes from the host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from stages.runtime.model import cache_folder, user_cache

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # Apptainer mounts those of the host
DEFAULTS = {"APPTAINER_NV": "1", "APPTAINER_NET": "1", "APPTAINER_NETWORK": "none"}


def environment(
    files: Iterable[str], models: Iterable[str], written: Iterable[str], surroundings: Mapping[str, str]
) -> dict[str, str]:
    """Variables for jobs that read these files and model folders and write to the folders `written`, which are created.

    Variables that `surroundings` already sets are kept, so a site may override any of them.
    """
    hub, cache = surroundings.get("HF_HOME") or str(user_cache() / "huggingface"), str(cache_folder())
    written = [*written, cache]
    for folder in (hub, *written):
        Path(folder).mkdir(parents=True, exist_ok=True)  # a missing folder cannot be bound
    weights = [str(path) for folder in models for path in (Path(folder), *Path(folder).rglob("*"))]
    seen = {place for path in [*files, *(path for path in weights if os.path.islink(path))] for place in visible_by(path)}
    seen |= {hub, *map(os.path.abspath, models)}
    binds = [bind(place, "ro") for place in outermost(seen)]
    binds += [bind(place, "rw") for place in outermost(map(os.path.abspath, written)) if not is_shown(place)]
    given = [surroundings["APPTAINER_BIND"]] if surroundings.get("APPTAINER_BIND") else []
    kept = {name: surroundings.get(name, value) for name, value in DEFAULTS.items()}
    return {"HF_HOME": hub, "KINEMAKE_CACHE": cache, **kept, "APPTAINER_BIND": ",".join([*given, *binds])}


def visible_by(path: str) -> set[str]:
    """The paths to bind for a file: the folders of the file and of its link target.

    If such a folder holds the working directory, only the file itself is bound.
    """
    places = {os.path.abspath(path), os.path.realpath(path)}
    alone = {place for place in places if os.path.isdir(place) or is_inside(os.getcwd(), os.path.dirname(place))}
    return {place if place in alone else os.path.dirname(place) for place in places if not is_shown(place)}


def is_shown(path: str) -> bool:
    """Whether a container sees a path without a bind."""
    return any(is_inside(path, place) for place in (os.getcwd(), *TEMPORARY))


def is_inside(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths that lie in none of the others, sorted."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: Path(path).parts):
        if not (kept and is_inside(path, kept[-1])):
            kept.append(path)
    return kept


def bind(path: str, mode: str) -> str:
    """Apptainer's notation for a bind at the same path; commas and colons are escaped."""
    name = path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
    return f"{name}:{name}:{mode}"
