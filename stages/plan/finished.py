"""Read back the plan of a run from its folder in the results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.plan.load import load
from stages.plan.runs import RunPlan
from stages.runtime.errors import UsageError
from stages.runtime.model import declared_entries
from stages.runtime.text import read_yaml

CONFIG, CLIPS = "config.yaml", "clips.jsonl"  # what describes a run in its folder


def run_of(path: Path) -> Path | None:
    """The folder of the run that a result belongs to, or None for a result made by hand."""
    folders = path.absolute().parents
    return next((folder for folder in folders if (folder / CONFIG).is_file() and (folder / CLIPS).is_file()), None)


def read_config(folder: Path, scores: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """The config of the run in `folder`, adapted to where that folder is now, and the working folder of its relative paths.

    `scores` are measured instead of those that the run asks for. Models among them that the run does not use are declared
    in ./config.yaml. Raises UsageError if the folder holds no run.
    """
    folder = folder.resolve()
    rows = folder / CLIPS
    if not rows.is_file() or not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is not the folder of a run", f"give RESULTS/RUN: it holds {CONFIG} and {CLIPS}")
    config = read_yaml(folder / CONFIG)
    try:
        [entry] = config["runs"].values()
        written = Path(entry["clips"])  # relative to the folder in which snakemake ran
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).replace("\n", " ")
        raise UsageError(f"{folder / CONFIG} is not that of a run ({reason})", "run snakemake again") from None
    root = Path.cwd() if written.is_absolute() else folder.parents[len(written.parts) - 2]
    run = {**entry, "clips": str(rows), **({"scores": list(scores)} if scores else {})}
    models = {**(declared_here(scores) if scores else {}), **config["models"]}
    return {**config, "models": models, "results": str(folder.parent), "runs": {folder.name: run}}, root


def declared_here(names: Sequence[str]) -> dict[str, Any]:
    """The declarations of these models in ./config.yaml, with absolute paths."""
    entries = {name: entry for name, entry in declared_entries(None).items() if name in names}
    return {
        n: {**entry, "path": os.path.abspath(entry["path"])} if "path" in entry else entry for n, entry in entries.items()
    }


def read_plan(folder: Path, scores: Sequence[str] = ()) -> tuple[RunPlan, Path]:
    """The plan of the run in `folder`, and the working folder of its relative paths, see `read_config`."""
    config, root = read_config(folder, scores)
    return load(config, 1, whole=True).runs[0], root
