"""Is everything here that the config's runs need: programs, GPUs, weights, room on the disk."""

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
from stages.runtime.table import table

if TYPE_CHECKING:
    from stages.runtime.model import Model

PACKAGES = ("torch", "diffusers", "transformers", "av", "imageio-ffmpeg", "snakemake")
PROGRAMS = {"apptainer": "only for --sdm apptainer", "sbatch": "only for Slurm"}
COPIES = 2  # of a run's files: in the results, and in the store
Row = Sequence[str]


class Gpu(NamedTuple):
    """A GPU as the driver tells it; memory in bytes."""

    uuid: str
    name: str
    total: int
    free: int


def gpus() -> list[Gpu]:
    """The GPUs of this machine; none without a driver."""
    rows = ask_driver("uuid", "name", "memory.total", "memory.free")
    return [Gpu(uuid, name, int(total) * 2**20, int(free) * 2**20) for uuid, name, total, free in rows]


def programs() -> Iterable[Row]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed here: of its stages none runs in this environment"
    for name, use in PROGRAMS.items():
        yield name, shutil.which(name) or f"not found: {use}"


def devices(found: Sequence[Gpu]) -> Iterable[Row]:
    from stages.runtime.weights import in_words

    for gpu in found:
        yield gpu.uuid, gpu.name, f"{in_words(gpu.total)}, {in_words(gpu.free)} free"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "CPU", f"{len(os.sched_getaffinity(0))} cores", in_words(memory)


def free(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or will be."""
    from stages.runtime.weights import existing

    return shutil.disk_usage(existing(folder.absolute())).free


def room(results: Path, wanted: Mapping[str, float], broken: Mapping[str, str]) -> Iterable[Row]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from stages.runtime.weights import in_words

    for name, folder in ((results, results), ("weights", Path(HF_HUB_CACHE))):
        yield str(name), f"{in_words(free(folder))} free"
    for name, size in wanted.items():
        yield f"run {name}", f"takes about {in_words(size)}"
    for name, reason in broken.items():
        yield f"run {name}", f"cannot be made: {reason}"


def disk_of_runs(config: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """About how many bytes the files of each run take, without those that only lossless and save_frames ask for; and why
    other runs, or trainings, cannot be made.

    A file system that shares the blocks of copies (XFS, Btrfs) needs half of that.

    Raises UsageError for a config of which nothing can be planned.
    """
    from stages import plan
    from stages.plan.families import ALL

    planned = plan.load(config, 1)
    wanted = {
        run.run.name: COPIES
        * sum(ALL[job.family].disk(item.options) for job in run.jobs if job.stage.name == "encode" for item in job.items)
        for run in planned.runs
    }
    return wanted, {one.name: one.reason for one in planned.broken}


def state(model: Model) -> tuple[str, bool]:
    """What can be said of a model's weights, and whether they can be used."""
    from stages.models import FAMILIES
    from stages.runtime.errors import JobError, UsageError
    from stages.runtime.model import completed
    from stages.runtime.weights import check, in_words

    try:
        files = check(completed(model, FAMILIES), FAMILIES[model.family])
    except (JobError, UsageError) as error:
        return str(error), False
    return f"whole, {in_words(sum(path.stat().st_size for path in files))}", True


def needs(model: Model, found: Sequence[Gpu]) -> Iterable[Row]:
    """Per stage: the weights that are in memory at once, and where they fit."""
    from stages.models import FAMILIES
    from stages.runtime.model import completed
    from stages.runtime.options import resolve
    from stages.runtime.weights import in_words, resident_bytes

    model, family = completed(model, FAMILIES), FAMILIES[model.family]
    for stage, groups in family.resident.items():
        options = resolve(family.of_stage(stage), model.all_options, model.variant)
        size = resident_bytes(model, groups, options.get("dtype", ""))
        fitting = sorted({gpu.name for gpu in found if size < gpu.total})
        where = f"fits {', '.join(fitting)}" if fitting else "fits no GPU here" if found else ""
        if found and not fitting and (saving := family.memory_saving.get(stage)):
            where += f": {', '.join(f'{name} {value}' for name, value in saving.items())}"
        yield model.name, stage, in_words(size), where


def section(title: str, rows: Iterable[Row]) -> str:
    return f"{title}\n{textwrap.indent(table([*rows]), '  ')}"


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL...]")
@click.option("--config", type=PathType(), help="Declares models and runs. Default: ./config.yaml.")
@clean_errors
def main(models: tuple[str, ...], config: Path | None, debug: bool) -> None:
    """Tell what is here and what is missing: programs, GPUs, room and what the runs take of it, and of each MODEL (default:
    all that the config declares) whether its weights are whole, and how much memory they take at once in each stage;
    activations come on top.

    Exit code 1 where weights are missing or torn that a run of the config, or MODEL, needs, or room on the disk.
    """
    from stages.runtime.model import DEFAULT_CONFIG, declared_models, pick_declared
    from stages.runtime.text import read_yaml

    declared = declared_models(config)
    chosen = [pick_declared(name, declared) for name in models] or list(declared.values())
    path = config or DEFAULT_CONFIG
    said = (read_yaml(path) if os.path.lexists(path) else None) or {}
    wanted, broken = disk_of_runs(said) if said.get("runs") else ({}, {})
    used = {run.get(key) for run in (said.get("runs") or {}).values() for key in ("model", "captioner")}
    found = gpus()
    click.echo(section("programs", programs()) + section("devices", devices(found)), nl=False)
    results = Path(os.path.expanduser(said.get("results", "results")))
    click.echo(section("disk", room(results, wanted, broken)), nl=False)
    states = {model.name: state(model) for model in chosen}
    click.echo(section("weights", ((name, words) for name, (words, _) in states.items())), nl=False)
    here = [declared[name] for name, (_, usable) in states.items() if usable]
    click.echo(section("weights in memory at once", (row for model in here for row in needs(model, found))), nl=False)
    missing = [name for name, (_, usable) in states.items() if not usable and (name in models or name in used)]
    missing += broken
    if sum(wanted.values()) > free(results):
        missing.append("room on the disk")
    if missing:
        click.echo(f"error: not ready: {', '.join(missing)}", err=True)
        sys.exit(1)


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
