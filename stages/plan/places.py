"""Check that the paths of a plan can be used: its results, its store and Snakemake's own files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.plan.jobs import marks_folder
from stages.plan.names import length_fault
from stages.runtime.artifacts import index_path
from stages.runtime.errors import UsageError, shown
from stages.runtime.files import file_fault
from stages.runtime.locks import LOCK
from stages.runtime.places import folder_fault, output_fault, writing_fault, writing_remedy
from stages.runtime.result_record import record_path
from stages.runtime.store import Store

if TYPE_CHECKING:
    from stages.plan.plan import Plan


def check_places(results: str, store: str, runs: Iterable[str]) -> None:
    """Raise UsageError if the store and a run would contain each other, and for names that no file system allows."""
    for place in (results, store):
        if fault := length_fault(place):
            raise UsageError(f"results or store is {shown(place)}", fault)
    real_store, real_results = Path(os.path.realpath(store)), Path(os.path.realpath(results))
    if real_results.is_relative_to(real_store):
        raise UsageError(f"the store {store} holds the results, {results}", "choose another folder, such as results/store")
    if inside := [run for run in runs if real_store.is_relative_to(real_results / run)]:
        raise UsageError(f"the store {store} lies in the folder of run {inside[0]}", "choose another folder")


def check_working_folder(plan: Plan) -> None:
    """Raise UsageError if Snakemake cannot write its own files, which may belong to another user."""
    places = [Path(".snakemake", name) for name in ("log", "locks", "metadata", "incomplete")]
    places += [Path(marks_folder(run.run)) for run in plan.runs]
    if fault := next(filter(None, (output_fault(place / "any") for place in places)), None):
        raise UsageError(
            f"{os.getcwd()}, the working folder, cannot be used ({fault})",
            "start Snakemake in a folder of your own, with --snakefile and --configfile",
        )


def check_folders(plan: Plan) -> None:
    """Raise UsageError for a file at the path of a folder, and for a folder at the path of a file."""
    folders = set(map(str, (plan.results, *plan.results.parents)))
    outputs = [output for job in plan.jobs for output in job.outputs]
    outputs += [str(index_path(Path(film))) for film in plan.films]
    outputs += [str(record_path(Path(output))) for output in outputs]
    outputs += [one.output for one in plan.weights] + [one.output for one in plan.trainings]
    outputs += [one.output for one in plan.broken]
    for output in outputs:
        if os.path.isdir(output):
            raise UsageError(f"{output} is a folder, not a file", "remove it, or choose other results")
        folder = os.path.dirname(output)
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    if fault := next(filter(None, map(folder_fault, sorted(folders))), None):
        raise UsageError(f"the results cannot be written ({fault})", "remove it, or choose other results")


def check_writable(plan: Plan) -> None:
    """Raise UsageError if the results or a store cannot be written, or a record of weights is unreadable."""
    faults = {plan.results: writing_fault(plan.results)}
    faults |= {store: Store(store).fault() for store in sorted({Path(run.run.store) for run in plan.runs})}
    for place, fault in faults.items():
        if fault:
            remedy = f"{writing_remedy(fault)}, or choose another folder in the config"
            raise UsageError(f"{place} cannot be written ({fault})", remedy)
    for weights in plan.weights:  # Snakemake reads these records too
        if os.path.isfile(weights.output) and (fault := file_fault(weights.output)):
            raise UsageError(f"{weights.output} {fault}", "make it readable, or remove it")


def check_case(plan: Plan) -> None:
    """Raise UsageError for two outputs that are the same file on a file system that ignores case.

    Such a file system finds the lock of the results under its upper-case name, so call this after the lock exists.
    """
    name = plan.results / LOCK
    capitals = name.with_name(LOCK.upper())
    if not (os.path.exists(capitals) and os.path.samefile(name, capitals)):
        return
    seen: dict[str, str] = {}
    for output in (output for job in plan.jobs for output in job.outputs):
        other = seen.setdefault(output.casefold(), output)
        if other != output:
            raise UsageError(
                f"{output} and {other} are one file: the file system of {plan.results} ignores case",
                "give the clips or runs other names",
            )


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """Turn an OSError into a UsageError."""
    try:
        yield
    except OSError as error:
        place = error.filename or results
        raise UsageError(
            f"{place} cannot be written ({error.strerror or error})", "mend that, or choose other results"
        ) from error
