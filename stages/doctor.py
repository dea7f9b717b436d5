"""Check that this machine has what the runs of a config need: programs, GPUs, weights, disk space."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors
from stages.runtime.lease import ask_driver
from stages.runtime.model import user_cache
from stages.runtime.places import free_bytes, output_fault
from stages.runtime.table import table

if TYPE_CHECKING:
    from stages.runtime.model import Model

PACKAGES = ("torch", "diffusers", "transformers", "av", "imageio-ffmpeg", "snakemake")
PROGRAMS = {"apptainer": "only for --sdm apptainer", "sbatch": "only for Slurm"}
COPIES = 2  # of a run's files: one in the results and one in the store
Row = Sequence[str]


class Gpu(NamedTuple):
    """A GPU as the driver reports it; memory in bytes."""

    uuid: str
    name: str
    total: int
    free: int


def gpus() -> list[Gpu]:
    """The GPUs of this machine; empty without a driver."""
    rows = ask_driver("uuid", "name", "memory.total", "memory.free")
    return [Gpu(uuid, name, int(total) * 2**20, int(free) * 2**20) for uuid, name, total, free in rows]


def programs() -> Iterable[Row]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed here: the stages that need it cannot run in this environment"
    if fault := output_fault(user_cache() / "snakemake" / "any"):
        yield "snakemake", f"cannot work ({fault}): set HOME or XDG_CACHE_HOME to a folder that can be written"
    for name, use in PROGRAMS.items():
        yield name, shutil.which(name) or f"not found: {use}"


def devices(found: Sequence[Gpu]) -> Iterable[Row]:
    from stages.runtime.errors import format_bytes

    for gpu in found:
        yield gpu.uuid, gpu.name, f"{format_bytes(gpu.total)}, {format_bytes(gpu.free)} free"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "CPU", f"{len(os.sched_getaffinity(0))} cores", format_bytes(memory)


def disk(results: Path, needed: Mapping[str, float], broken: Mapping[str, str]) -> Iterable[Row]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from stages.runtime.errors import format_bytes

    for name, folder in ((results, results), ("weights", Path(HF_HUB_CACHE))):
        yield str(name), f"{format_bytes(free_bytes(folder))} free"
    for name, size in needed.items():
        yield f"run {name}", f"takes about {format_bytes(size)}"
    for name, reason in broken.items():
        yield f"run {name}", f"cannot be made: {reason}"


def disk_of_runs(config: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Approximate bytes of the files of each run, and why other runs or trainings cannot be made, both by name.

    The files that only the options lossless and save_frames add are left out. A file system that shares the blocks of copies
    (XFS, Btrfs) needs half. Raises UsageError for a config from which nothing can be planned.
    """
    from stages import plan
    from stages.plan.families import ALL_FAMILIES

    planned = plan.load(plan.with_own_models(config), 1)
    needed = {
        run.run.name: COPIES
        * sum(
            ALL_FAMILIES[part.family].disk(item.options)
            for part in run.parts
            if part.stage.name == "encode"
            for item in part.items
        )
        for run in planned.runs
    }
    return needed, {one.name: one.reason for one in planned.broken}


def state(model: Model) -> tuple[str, bool]:
    """A description of the state of a model's weights, and whether they are usable."""
    from stages.families import FAMILIES
    from stages.runtime.errors import JobError, UsageError, format_bytes
    from stages.runtime.model import complete_model
    from stages.runtime.weights import check

    try:
        files = check(complete_model(model, FAMILIES), FAMILIES[model.family])
    except (JobError, UsageError) as error:
        return str(error), False
    return f"whole, {format_bytes(sum(path.stat().st_size for path in files))}", True


def needs(model: Model, found: Sequence[Gpu]) -> Iterable[Row]:
    """Per stage: the size of the weights that are in memory at once, and the GPUs that they fit on."""
    from stages.families import FAMILIES
    from stages.runtime.errors import format_bytes
    from stages.runtime.model import complete_model
    from stages.runtime.options import rename_aliases, resolve
    from stages.runtime.weights import bytes_in_memory

    model, family = complete_model(model, FAMILIES), FAMILIES[model.family]
    for stage, implementation in family.stages.items():
        if not implementation.in_memory:
            continue
        declared = implementation.options.declared
        options = resolve(declared, rename_aliases(declared, model.all_options), model.variant)
        size = bytes_in_memory(model, implementation, options)
        fitting = sorted({gpu.name for gpu in found if size < gpu.total})
        where = f"fits {', '.join(fitting)}" if fitting else "fits no GPU here" if found else ""
        saving = {name: value for name, value in implementation.on_out_of_memory.items() if options[name] != value}
        if found and not fitting and saving:
            where += f": {', '.join(f'{name} {value}' for name, value in saving.items())}"
        yield model.name, stage, format_bytes(size), where


def section(title: str, rows: Iterable[Row]) -> str:
    return f"{title}\n{textwrap.indent(table([*rows]), '  ')}"


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option("--config", type=PathType(), help="Config that declares models and runs. Default: ./config.yaml.")
@clean_errors
def main(models: tuple[str, ...], config: Path | None, debug: bool) -> None:
    """Check that programs, GPUs, disk space and weights are there for the runs of a config.

    For each MODEL (default: all models of the config), check that its weights are complete, and show how much memory they
    need at once in each stage. Activations need more memory on top.

    The exit code is 1 if disk space is short, or if weights are missing or damaged that MODEL or a run of the config needs.
    """
    from stages.plan.families import ROLES
    from stages.runtime.model import DEFAULT_CONFIG, declared_models, pick_declared
    from stages.runtime.text import read_yaml

    declared = declared_models(config)
    chosen = [pick_declared(name, declared) for name in models] or list(declared.values())
    path = config or DEFAULT_CONFIG
    settings = (read_yaml(path) if os.path.lexists(path) else None) or {}
    needed, broken = disk_of_runs(settings) if settings.get("runs") else ({}, {})
    used = {run.get(key) for run in (settings.get("runs") or {}).values() for key in ROLES}
    found = gpus()
    click.echo(section("programs", programs()) + section("devices", devices(found)), nl=False)
    results = Path(os.path.expanduser(settings.get("results", "results")))
    click.echo(section("disk", disk(results, needed, broken)), nl=False)
    states = {model.name: state(model) for model in chosen}
    click.echo(section("weights", ((name, words) for name, (words, _) in states.items())), nl=False)
    here = [declared[name] for name, (_, usable) in states.items() if usable]
    click.echo(section("weights in memory at once", (row for model in here for row in needs(model, found))), nl=False)
    missing = [name for name, (_, usable) in states.items() if not usable and (name in models or name in used)]
    missing += broken
    if sum(needed.values()) > free_bytes(results):
        missing.append("room on the disk")
    if missing:
        click.echo(f"error: not ready: {', '.join(missing)}", err=True)
        sys.exit(1)


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
