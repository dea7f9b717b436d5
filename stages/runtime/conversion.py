"""Convert published checkpoints, which may be on the model hub, to a folder that the stages load."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.runtime.errors import JobError, UsageError, one_line
from stages.runtime.files import remove
from stages.runtime.hub import Wanted, ask, download, is_source, parse_source
from stages.runtime.locks import holder, open_lock, try_lock, wait_for_lock
from stages.runtime.log import log
from stages.runtime.options import Conversion
from stages.runtime.worker import import_class


def convert(
    conversion: Conversion, values: Mapping[str, Any], output: Path, name: str = "", place: Path | None = None
) -> dict[str, str | None]:
    """Convert what the option values name to the folder `output`, after a download of what is on the model hub.

    `name` is that of the model, and `place` the final path of the folder, for the log. Returns the commits of the sources by
    address. Raises JobError, and UsageError if `output` exists or if the sources do not fit.
    """
    if os.path.lexists(output):
        raise UsageError(f"the output {output} exists", "remove it, or give another --output")
    sources = {option: parse_source(value) for option, value in values.items() if is_source(value)}
    wanted = {}
    for option, (hub, revision, path) in sources.items():
        patterns = conversion.reads(values).get(option)
        inner = tuple(str(Path(path, pattern)) for pattern in patterns) if patterns else (path,)
        wanted[option] = Wanted(hub, revision, inner, rewritten=option not in conversion.links)
    listings = ask(wanted.values())
    folders = download(name or output.name, [*wanted.values()], listings, place or output) if wanted else []
    local = {option: str(folder / path) for folder, (option, (*_, path)) in zip(folders, sources.items(), strict=True)}
    try:
        import_class(conversion.convert)(conversion.options.of({**values, **local}), output)
    except ModuleNotFoundError as error:
        remedy = "install it: pip install 'kinemake[diffusion]'"
        raise JobError(f"the conversion needs {error.name}, which is not installed here", remedy) from error
    return {values[option]: listings[one.place].sha for option, one in wanted.items()}


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """Yield a path for a new folder that replaces the one at `place` in the end, if it was created.

    Other processes that replace the same folder wait. What a killed one left is removed. Raises JobError.
    """
    work = place.with_name(f".{place.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(place.with_name(f"{work.name}.lock"))
        try:
            if not try_lock(lock):
                log("waiting", folder=str(place), reason=f"{holder(lock)} works on it")
                wait_for_lock(lock)
            remove(work)
            work.mkdir()
            yield work / "new"
            if (work / "new").exists():
                if place.exists():
                    place.rename(work / "old")
                (work / "new").rename(place)
        finally:
            remove(work)
            os.close(lock)
    except OSError as error:
        remedy = "mend that, or set HF_HOME to another folder"
        raise JobError(f"{place} cannot be written ({one_line(error)})", remedy) from error
