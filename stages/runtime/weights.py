"""The model files that a family reads: validation, size in memory, and download from the model hub."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

from stages.runtime import store
from stages.runtime.calls import command_line
from stages.runtime.components import (
    Broken,
    Component,
    check_component,
    check_index,
    header,
    network_files,
    read_object,
    refuse_code_of,
)
from stages.runtime.conversion import convert, replacing_folder
from stages.runtime.errors import JobError, one_line
from stages.runtime.hub import SCHEME, Wanted, ask, download, parse_source
from stages.runtime.log import log
from stages.runtime.model import (
    OTHER_LAYOUT,
    SETTINGS,
    Model,
    complete_model,
    prepared,
    settings_in,
    weights_digests,
)
from stages.runtime.options import DTYPE, Family, Implementation, Published
from stages.runtime.places import dangling

CONVERSION = "conversion.json"  # file in the folder of a converted model: what it was converted from
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8_e4m3fn": 1, "float8_e5m2": 1}
BYTES |= {"int8_weight_only": 1, "float8_weight_only": 1}


def patterns(family: Family, stage: str = "") -> list[str]:
    """Glob patterns, below the model's folder, of the files that a stage of the family reads; of all the family for ""."""
    stages = [family.stages[stage]] if stage else family.stages.values()
    others = () if stage else family.files
    return sorted({*others, *(pattern for implementation in stages for pattern in implementation.weights)})


def check(model: Model, family: Family, stage: str = "") -> list[Path]:
    """The files that a stage, or all stages for "", reads of a model on this machine.

    Raises JobError for missing or unreadable files. Components that only later stages load are checked too if they exist.
    """
    try:
        files = checked(model, family, patterns(family, stage))
    except Broken as error:
        raise not_loadable(model, error) from None
    if missing := [source for path, source in model.fetched.items() if not os.path.isfile(path)]:
        remedy = f"fetch it once: {command_line('fetch', model.name)}"
        raise JobError(f"{missing[0]} of model {model.name} is not on this machine", remedy)
    return files


def checked(model: Model, family: Family, wanted: list[str]) -> list[Path]:
    """The files that match the patterns. Raises Broken, JobError."""
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
    """Raise Broken for a file or component that is a dangling link, because it would count as absent."""
    places = [folder / part.folder for part in family.components]
    places += sorted(path for pattern in wanted for path in folder.glob(pattern))
    if place := next(filter(dangling, places), None):
        raise Broken(f"{place} {dangling(place)}")


def not_loadable(model: Model, error: Broken) -> JobError:
    """The error for a broken model folder, with the model's name and a remedy."""
    return JobError(f"model {model.name} cannot be loaded: {error.reason}", error.own_remedy or remedy(model))


def check_kind(model: Model, family: Family) -> None:
    """Raise JobError if the folder holds another family or variant than declared."""
    if family.components and (found := family.detect(model.folder())) != model.variant:
        declared = f"variant {model.variant} of family {family.name}" if model.variant else f"family {family.name}"
        raise JobError(
            f"model {model.name} is declared as {declared} and {model.folder()} holds {found or 'no model of it'}",
            "correct the declaration or the folder",
        )


def parts(model: Model, family: Family, wanted: list[str], others: bool = False) -> list[Component]:
    """The components that the patterns need. With `others`, all other existing components too."""
    found = []
    for part in family.components:
        is_wanted = not part.folder or any(fnmatch(f"{part.folder}/x", pattern) for pattern in wanted)
        is_there = os.path.isdir(model.folder() / part.folder)
        of_variant = not part.variants or model.variant in part.variants
        if of_variant and ((is_there and (is_wanted or others)) or (is_wanted and not part.optional)):
            found.append(part)
    return found


def remedy(model: Model) -> str:
    return f"fetch it again: {model.fetching}" if model.is_published else "copy it again, with all its files"


def weights_error(model: Model, error: Exception) -> JobError:
    """The error for weights that a library cannot read."""
    return JobError(
        f"the weights of model {model.name} in {model.folder()} are not whole ({one_line(error)})", remedy(model)
    )


# --------------------------------------------------------------------------------------------------------------- memory


def bytes_in_memory(model: Model, implementation: Implementation, values: Mapping[str, Any]) -> int:
    """Bytes of the weights that a stage holds in memory at once with these option values.

    They are those of its largest group of components. Raises JobError if the weights are missing or incomplete.
    """
    return max((sum(sizes.values()) for sizes in sizes_in_memory(model, implementation, values)), default=0)


def sizes_in_memory(model: Model, implementation: Implementation, values: Mapping[str, Any]) -> list[dict[str, int]]:
    """Bytes of the weights of each component, for each group of components that a stage holds in memory at once.

    Raises JobError if the weights are missing or incomplete.
    """
    folder, chosen = model.folder(), implementation.precision(values)
    return [
        {part: count_parameters(folder / part) * BYTES[chosen if kind == DTYPE else kind] for part, kind in group.items()}
        for group in implementation.in_memory
    ]


@cache
def count_parameters(folder: Path) -> int:
    """Number of parameters of a component."""
    return sum(math.prod(spec["shape"]) for path in network_files(folder) for spec in header(path).values())


# ---------------------------------------------------------------------------------------------------------------- fetch


def fetch(model: Model, family: Family, verify: bool = False) -> dict[str, Any]:
    """Check that a model is on this machine and complete, and return the record of its files. Raises JobError.

    The files of a Hub model are downloaded if they are missing or damaged; an interrupted download is resumed. A model that
    is declared by a conversion is converted if it is missing or damaged. The network is used only then. With `verify` every
    file is read, and compared with the digest by which the hub names it.
    """
    families = {family.name: family}
    obtain_named_files(prepared(model, family))
    try:
        files = check(model := complete_model(model, families), family)
    except JobError:
        if not model.is_published:
            raise
        if model.convert:
            obtain_converted(model, family)
        else:
            obtain(model, family)
        files = check(model := complete_model(model, families), family)
    folder = model.folder()
    log("digests", model=model.name, files=len(files), bytes=sum(path.stat().st_size for path in files))
    record = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
        for path, digest in zip(files, weights_digests(files, verify))
    }
    named = dict(zip(model.fetched.values(), weights_digests(map(Path, model.fetched), verify)))
    further = {"named_files": named} if named else {}
    return {
        "model": model.name,
        "family": model.family,
        "variant": model.variant,
        **origin(model),
        "files": record,
        **further,
    }


def origin(model: Model) -> dict[str, Any]:
    """Where the weights of a model on this machine come from."""
    if model.convert:
        return {"conversion": read_object(model.folder() / CONVERSION)}
    # a folder of the hub's cache is named after its commit
    return {"hub": model.hub, "revision": model.folder().name} if model.hub else {"path": model.path}


def obtain(model: Model, family: Family) -> None:
    """Download the files of a Hub model that the family reads. Raises JobError."""
    wanted = [Wanted(model.hub, model.revision, (*patterns(family), SETTINGS))]
    listings = ask(wanted)
    names = [one.rfilename for info in listings.values() for one in info.siblings or []]
    if advice := family.recognise(Published(f"{SCHEME}{model.hub}", names, model.variant)):
        raise JobError(f"{model.hub} {OTHER_LAYOUT}", advice)
    download(model.name, wanted, listings)
    if settings_in(model.folder()):
        reason = f"{model.hub} has settings of its own in {SETTINGS}: what was planned before it came does not know them"
        log("warning", model=model.name, reason=reason)


def obtain_named_files(model: Model) -> None:
    """Download the files on the Hub that a model's options name, if they are not on this machine. Raises JobError."""
    missing = {path: parse_source(source) for path, source in model.fetched.items() if not os.path.isfile(path)}
    if not missing:
        return
    wanted = [Wanted(hub, revision, (name,)) for hub, revision, name in missing.values()]
    folders = download(model.name, wanted, ask(wanted))
    for folder, (path, (*_, name)) in zip(folders, missing.items()):
        try:
            store.place((folder / name).resolve(), Path(path), linked=True)  # resolved: the hub's cache consists of links
        except OSError as error:
            raise JobError(f"{path} cannot be written ({one_line(error)})", "set HF_HOME to another folder") from error


def obtain_converted(model: Model, family: Family) -> None:
    """Convert a model to its folder, unless another process did meanwhile. The folder appears when it is complete.

    Raises JobError, and UsageError for sources that do not fit.
    """
    with replacing_folder(Path(model.converted)) as folder:
        try:
            check(model, family)
        except JobError:
            assert family.conversion is not None  # complete_model refuses convert without it
            commits = convert(family.conversion, model.convert, folder, model.name, Path(model.converted))
            record = {"version": family.conversion.version, "options": model.convert, "revisions": commits}
            (folder / CONVERSION).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
