"""The files of a model that a family reads: are they all there and whole; and fetching them once from the model hub."""

from __future__ import annotations

import math
import os
import shutil
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.components import (
    Broken,
    Component,
    check_component,
    check_index,
    header,
    network_files,
    refuse_code_of,
)
from stages.runtime.errors import JobError, one_line
from stages.runtime.log import log
from stages.runtime.model import SETTINGS, Model, cached_file_digest, completed, settings_in
from stages.runtime.options import Family, Resident
from stages.runtime.places import dangling

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
SPARE = 2**30  # bytes that stay free on the disk that weights are fetched to


def patterns(family: Family, stage: str = "") -> list[str]:
    """What a stage of the family reads, or all of them, as patterns below the model's folder."""
    stages = [family.weights.get(stage, ())] if stage else family.weights.values()
    return sorted({pattern for stage_patterns in stages for pattern in stage_patterns})


def check(model: Model, family: Family, stage: str = "") -> list[Path]:
    """The files of a model that is on this machine, of one stage or of all.

    Raises JobError for what its loaders would not find or could not read: before a stage begins, also of the parts that only
    later ones load, as far as they are there.
    """
    try:
        return checked(model, family, patterns(family, stage))
    except Broken as error:
        raise not_loadable(model, error) from None


def checked(model: Model, family: Family, wanted: list[str]) -> list[Path]:
    """The files that the patterns are about. Raises Broken, JobError."""
    folder, files = model.folder(), model.files(wanted)
    check_links(folder, family, wanted)
    check_index(folder, family.components)
    missing = [] if files else ["everything"]
    missing += [name for name in wanted if not set("*?[") & set(name) and not os.path.isfile(folder / name)]
    if not missing:
        check_kind(model, family)
        places = (part.folder for part in parts(model, family, wanted))
        missing = [f"{place}/" for place in places if not os.path.isdir(folder / place)]
    if missing:
        raise JobError(f"the weights of model {model.name} in {folder} lack {missing[0]}", remedy(model))
    found = parts(model, family, wanted, others=True)
    for part in found:
        check_component(folder, part)
    for place in dict.fromkeys(folder / part.folder for part in found if part.may_name_code):
        refuse_code_of(place)
    return files


def check_links(folder: Path, family: Family, wanted: list[str]) -> None:
    """Raise Broken for a file, or a part, that is a link to nothing: it would count as one that the model does not have."""
    places = [folder / part.folder for part in family.components]
    places += sorted(path for pattern in wanted for path in folder.glob(pattern))
    if place := next(filter(dangling, places), None):
        raise Broken(f"{place} {dangling(place)}")


def not_loadable(model: Model, error: Broken) -> JobError:
    """What is wrong with a model's folder, with the model's name and how it comes here again."""
    return JobError(f"model {model.name} cannot be loaded: {error.reason}", error.own_remedy or remedy(model))


def check_kind(model: Model, family: Family) -> None:
    """Raise JobError where the folder holds another family, or variant, than is declared."""
    if family.components and (found := family.detect(model.folder())) != model.variant:
        declared = f"variant {model.variant} of family {family.name}" if model.variant else f"family {family.name}"
        raise JobError(
            f"model {model.name} is declared as {declared} and {model.folder()} holds {found or 'no model of it'}",
            "correct the declaration or the folder",
        )


def parts(model: Model, family: Family, wanted: list[str], others: bool = False) -> list[Component]:
    """The components of the model that the patterns are about, and the `others` that are there."""
    found = []
    for part in family.components:
        is_wanted = not part.folder or any(fnmatch(f"{part.folder}/x", pattern) for pattern in wanted)
        is_there = os.path.isdir(model.folder() / part.folder)
        of_variant = not part.variants or model.variant in part.variants
        if of_variant and (is_there and (is_wanted or others) or is_wanted and not part.optional):
            found.append(part)
    return found


def remedy(model: Model) -> str:
    return f"fetch it again: {model.fetching}" if model.hub else "copy it again, with all its files"


def not_whole(model: Model, error: Exception) -> JobError:
    """What to raise for weights that cannot be read."""
    return JobError(
        f"the weights of model {model.name} in {model.folder()} are not whole ({one_line(error)})", remedy(model)
    )


# --------------------------------------------------------------------------------------------------------------- memory


def resident_bytes(model: Model, groups: Resident, dtype: str) -> int:
    """Bytes of the weights that a stage has in memory at once: those of the largest of its groups of components.

    Raises JobError where the weights are not here or not whole.
    """
    folder = model.folder()
    return max((sum(numbers(folder / part) * BYTES[kind or dtype] for part, kind in group) for group in groups), default=0)


@cache
def numbers(folder: Path) -> int:
    """How many numbers the weights of a component are."""
    return sum(math.prod(spec["shape"]) for path in network_files(folder) for spec in header(path).values())


# ---------------------------------------------------------------------------------------------------------------- fetch


def fetch(model: Model, family: Family) -> dict[str, Any]:
    """See that a model is on this machine, whole, and return what it is made of. Raises JobError.

    Of a repository of the hub the files that the family reads are downloaded, once; a download that was interrupted is
    taken up. Nothing is asked of the network when all is here.
    """
    families = {family.name: family}
    try:
        files = check(completed(model, families), family)
    except JobError:
        if not model.hub:
            raise
        download(model, family)
        files = check(completed(model, families), family)
        if settings_in(model.folder()):
            reason = f"{model.hub} has settings of its own in {SETTINGS}: what was planned before it came does not know them"
            log("warning", model=model.name, reason=reason)
    folder = model.folder()
    log("digests", model=model.name, files=len(files), bytes=sum(path.stat().st_size for path in files))
    digests = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": cached_file_digest(path)}
        for path in files
    }
    # the folders of the hub's cache are called as the commits
    origin = {"hub": model.hub, "revision": folder.name} if model.hub else {"path": model.path}
    return {"model": model.name, "family": model.family, "variant": model.variant, **origin, "files": digests}


def download(model: Model, family: Family) -> None:
    """Fetch a repository's files into the hub's cache; first say what comes."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    info = repository(model)
    wanted = [*patterns(family), SETTINGS]
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or [] if any(fnmatch(s.rfilename, p) for p in wanted)}
    free = shutil.disk_usage(existing(Path(HF_HUB_CACHE))).free
    licence = (info.card_data or {}).get("license") or "not stated"
    total, here = sum(sizes.values()), sum(size for name, size in sizes.items() if is_cached(model, info.sha, name))
    sums = {"files": len(sizes), "bytes": total, "bytes_here": here, "bytes_free": free}
    log("fetch", model=model.name, hub=model.hub, revision=info.sha, licence=licence, **sums)
    if total - here + SPARE > free:
        raise JobError(
            f"{model.hub} needs {in_words(total - here)} more and {HF_HUB_CACHE} has {in_words(free)} free",
            "make room, or set HF_HOME to a larger disk",
        )
    try:
        snapshot_download(model.hub, revision=model.revision, allow_patterns=wanted)
    except Exception as error:  # of the network, of the hub, of the disk: the library's classes are many
        raise JobError(
            f"{model.hub} could not be fetched ({one_line(error)})", "run again: it goes on where it was"
        ) from error


def repository(model: Model) -> ModelInfo:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return HfApi().model_info(model.hub, revision=model.revision, files_metadata=True)
    except GatedRepoError as error:
        raise JobError(f"{model.hub} asks for consent first", "give it on its page, then: hf auth login") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise JobError(
            f"the hub has no {model.hub} at revision {model.revision}",
            "mend the model in the config, or hf auth login",
        ) from error
    except Exception as error:
        raise JobError(
            f"the hub cannot be asked for {model.hub} ({one_line(error)})", "fetch it where there is a network"
        ) from error


def is_cached(model: Model, revision: str | None, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model.hub, name, revision=revision), str)


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    return folder if os.path.exists(folder) else existing(folder.parent)


def in_words(count: int) -> str:
    """A number of bytes: 5.8 MB, 28.6 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
