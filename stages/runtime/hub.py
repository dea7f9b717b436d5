"""Repositories of the model hub: files to download, with size, licence and disk space shown before they come."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import JobError, UsageError, format_bytes, one_line, shown
from stages.runtime.log import log
from stages.runtime.places import free_bytes, is_same_disk

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

SCHEME = "hub://"
SOURCE = re.compile(rf"{SCHEME}(?P<hub>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<path>[^@]*[^@/]))?/?")
SPARE = 2**30  # bytes that stay free on a disk
Listings = Mapping[tuple[str, str], "ModelInfo"]  # by id and revision


@dataclass(frozen=True)
class Wanted:
    """Files of a repository: those that match one of the patterns.

    A pickle (`.bin`) is left out if its folder has a safetensors file among them. `rewritten`: a conversion writes what it
    reads of them to new files, and does not link them.
    """

    hub: str
    revision: str
    patterns: tuple[str, ...]
    rewritten: bool = False

    @property
    def place(self) -> tuple[str, str]:
        return self.hub, self.revision

    def pick(self, info: ModelInfo) -> dict[str, int]:
        """The size of each wanted file, by its name."""
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
        found = {name: size for name, size in sizes.items() if any(fnmatch(name, pattern) for pattern in self.patterns)}
        safe = {os.path.dirname(name) for name in found if name.endswith(".safetensors")}
        return {name: size for name, size in found.items() if not (name.endswith(".bin") and os.path.dirname(name) in safe)}


def is_source(value: object) -> bool:
    """Whether the value of an option names something on the model hub."""
    return isinstance(value, str) and value.startswith(SCHEME)


def parse_source(text: str) -> tuple[str, str, str]:
    """Id, revision and path within the repository, "" for all of it, of hub://OWNER/NAME[@REVISION][/PATH].

    Raises UsageError.
    """
    if not (found := SOURCE.fullmatch(text)):
        raise UsageError(f"{shown(text)} is no address on the model hub", f"write {SCHEME}OWNER/NAME[@REVISION][/PATH]")
    return found["hub"], found["revision"] or "main", found["path"] or ""


def ask(wanted: Iterable[Wanted]) -> Listings:
    """What the hub says of each repository. Raises JobError."""
    return {place: repository(*place) for place in dict.fromkeys(one.place for one in wanted)}


def download(name: str, wanted: Sequence[Wanted], listings: Listings, output: Path | None = None) -> list[Path]:
    """Download files to the hub's cache for the model `name`. Returns the folder of the repository of each in `wanted`.

    Sizes, licences and free disk space are logged first. `output` is the folder to which the files will be converted.
    Raises JobError, also for too little disk space, and for a repository without any of the wanted files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    for one in wanted:
        if not one.pick(listings[one.place]):
            raise JobError(f"{one.hub} has no {' or '.join(one.patterns)}", "mend its name")
    cache = Path(HF_HUB_CACHE)
    missing = sum(log_repository(name, place, wanted, info, cache) for place, info in listings.items())
    needed = {cache: missing}
    if output:
        linked = is_same_disk(cache, output)
        written = sum(sum(one.pick(listings[one.place]).values()) for one in wanted if one.rewritten or not linked)
        log("conversion", model=name, output=str(output), bytes=written, bytes_free=free_bytes(output))
        needed = {cache: missing + written} if linked else {cache: missing, output: written}
    hubs = [hub for hub, _ in listings]
    check_room(f"{' and '.join(hubs)} {'need' if len(hubs) > 1 else 'needs'}", needed)
    folders = []
    for one in wanted:
        try:
            files = [*one.pick(listings[one.place])]
            folders.append(Path(snapshot_download(one.hub, revision=one.revision, allow_patterns=files)))
        except Exception as error:  # the library raises many classes: network, hub, disk
            raise JobError(
                f"{one.hub} could not be fetched ({one_line(error)})", "run again: it goes on where it was"
            ) from error
    return folders


def log_repository(name: str, place: tuple[str, str], wanted: Iterable[Wanted], info: ModelInfo, cache: Path) -> int:
    """Log revision, licence and size of what is wanted of a repository. Returns the bytes that are not in the cache."""
    sizes = {file: size for one in wanted if one.place == place for file, size in one.pick(info).items()}
    total, here = sum(sizes.values()), sum(size for file, size in sizes.items() if is_cached(place[0], info.sha, file))
    licence = (info.card_data.get("license") if info.card_data else None) or "not stated"
    sums = {"files": len(sizes), "bytes": total, "bytes_here": here, "bytes_free": free_bytes(cache)}
    log("fetch", model=name, hub=place[0], revision=info.sha, licence=licence, **sums)
    return total - here


def check_room(subject: str, needed: Mapping[Path, int]) -> None:
    """Raise JobError if a disk has too little room. `needed` has what `subject` needs in bytes, by a folder of each disk."""
    for place, size in needed.items():
        if size and size + SPARE > (free := free_bytes(place)):
            raise JobError(
                f"{subject} {format_bytes(size)} more and {place} has {format_bytes(free)} free",
                "make room, or set HF_HOME to a larger disk",
            )


def repository(hub: str, revision: str) -> ModelInfo:
    """What the hub says of a repository. Raises JobError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().model_info(hub, revision=revision, files_metadata=True)
    except GatedRepoError as error:
        raise JobError(f"{hub} asks for consent first", "give it on its page, then: hf auth login") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise JobError(
            f"the hub has no {hub} at revision {revision}",
            "mend the model in the config, or hf auth login",
        ) from error
    except Exception as error:
        raise JobError(
            f"the hub cannot be asked for {hub} ({one_line(error)})", "fetch it where there is a network"
        ) from error


def is_cached(hub: str, revision: str | None, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub, name, revision=revision), str)
