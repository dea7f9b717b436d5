"""The files of a model that a family reads: are they all there and whole; and fetching them once from the model hub."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Iterable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.artifacts import read_header, whole_size
from stages.runtime.errors import JobError, one_line
from stages.runtime.log import log
from stages.runtime.model import Model, cached_file_digest
from stages.runtime.options import Family, Resident

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
UNREADABLE = (OSError, ValueError, KeyError, struct.error)  # what a torn file of weights is answered with
SPARE = 2**30  # bytes that stay free on the disk that weights are fetched to


def patterns(family: Family) -> list[str]:
    """What any stage of the family reads, as patterns below the model's folder."""
    return sorted({pattern for stage in family.weights.values() for pattern in stage})


def check(model: Model, family: Family) -> list[Path]:
    """The files of a model that is on this machine. Raises JobError for one that is missing or torn."""
    folder, wanted = model.folder(), patterns(family)
    files = sorted({path for pattern in wanted for path in folder.glob(pattern) if path.is_file()})
    names = {path.relative_to(folder).as_posix() for path in files}
    if missing := next(iter(missing_files(folder, names, wanted)), None):
        raise JobError(f"the weights of model {model.name} in {folder} lack {missing}", remedy(model))
    for path in files:
        if path.suffix == ".safetensors" and (problem := torn(path)):
            raise JobError(f"{path}, weights of model {model.name}, {problem}", remedy(model))
    return files


def remedy(model: Model) -> str:
    return f"fetch it again: {model.fetching}" if model.hub else "copy it again, with all its files"


def not_whole(model: Model, error: Exception) -> JobError:
    """What to raise for weights that cannot be read."""
    return JobError(
        f"the weights of model {model.name} in {model.folder()} are not whole ({one_line(error)})", remedy(model)
    )


def missing_files(folder: Path, names: set[str], wanted: list[str]) -> Iterable[str]:
    """What should be there beside the files of these names: parts that an index lists, weights beside a config, and the
    components of a repository that the `wanted` patterns are about."""
    if not names:
        yield "everything"
    for name in sorted(names):
        place = name.rpartition("/")[0]
        if name.endswith(".safetensors.index.json"):
            parts = set(json.loads((folder / name).read_text())["weight_map"].values())
            yield from sorted(part for part in (f"{place}/{part}".strip("/") for part in parts) if part not in names)
        elif name.rpartition("/")[2] == "config.json":
            inside = {other for other in names if other.rpartition("/")[0] == place}
            if not any(other.endswith((".safetensors", ".safetensors.index.json")) for other in inside):
                yield f"{place}/*.safetensors".strip("/")
        elif name == "model_index.json":
            for part, kind in json.loads((folder / name).read_text()).items():
                read = is_component(part, kind) and any(fnmatch(f"{part}/x", pattern) for pattern in wanted)
                if read and not any(other.startswith(f"{part}/") for other in names):
                    yield f"{part}/"


def is_component(name: str, kind: Any) -> bool:
    """Does an entry of model_index.json name a component that the repository has: [library, class], not [null, null]."""
    return name[0] != "_" and isinstance(kind, list) and kind[0] is not None


def torn(path: Path) -> str:
    """What is wrong with a safetensors file, by its header and its size; empty where nothing is."""
    size = path.stat().st_size
    try:
        header, start = read_header(path)
        whole = whole_size(header, start)
    except UNREADABLE:
        return "is no safetensors file"
    if not header.keys() - {"__metadata__"}:
        return "holds no tensor"
    return "" if size == whole else f"has {size} bytes instead of {whole}"


# --------------------------------------------------------------------------------------------------------------- memory


def resident_bytes(model: Model, groups: Resident, dtype: str) -> int:
    """Bytes of the weights that a stage has in memory at once: those of the largest of its groups of components.

    Raises JobError where the weights are not here or not whole.
    """
    folder = model.folder()
    try:
        sizes = [sum(numbers(folder / part) * BYTES[kind or dtype] for part, kind in group) for group in groups]
    except UNREADABLE as error:
        raise not_whole(model, error) from error
    return max(sizes, default=0)


@cache
def numbers(folder: Path) -> int:
    """How many numbers the weights of a component are."""
    headers = [read_header(path)[0] for path in folder.glob("*.safetensors")]
    return sum(math.prod(spec["shape"]) for header in headers for name, spec in header.items() if name != "__metadata__")


# ---------------------------------------------------------------------------------------------------------------- fetch


def fetch(model: Model, family: Family) -> dict[str, Any]:
    """See that a model is on this machine, whole, and return what it is made of. Raises JobError.

    Of a repository of the hub the files that the family reads are downloaded, once; a download that was interrupted is
    taken up. Nothing is asked of the network when all is here.
    """
    try:
        files = check(model, family)
    except JobError:
        if not model.hub:
            raise
        download(model, family)
        files = check(model, family)
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
    wanted = patterns(family)
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
    return folder if folder.exists() else existing(folder.parent)


def in_words(count: int) -> str:
    """A number of bytes: 5.8 MB, 28.6 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
