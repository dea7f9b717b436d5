"""Show what comes of an input that is still being made: a video that grows, instead of an artifact."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stages.runtime import artifacts
from stages.runtime.artifacts import KINDS, Artifact
from stages.runtime.device import take_device
from stages.runtime.errors import ItemError, UsageError
from stages.runtime.items import Item
from stages.runtime.log import log
from stages.runtime.loop import Running
from stages.runtime.options import Family
from stages.runtime.shard import complete
from stages.runtime.stages import Stage
from stages.runtime.worker import Setting, find_worker

POLL = 0.5  # seconds between two looks at what is being made


def trail(output: Path) -> Path:
    """The link beside an output that leads to its unfinished state in the store, while there is one."""
    return output.with_name(f"{output.stem}.partial{output.suffix}")


def latest(path: Path) -> Artifact | None:
    """An artifact as far as it is: whole, else in the making, else None.

    Raises ItemError for one that cannot be read, or where a failure stands in its place.
    """
    there = next((place for place in (path, trail(path)) if place.is_file()), None)
    artifact = there and artifacts.read(there, KINDS)
    if artifact and artifact.failure:
        raise ItemError(artifact.failure.reason, artifact.failure.remedy)
    return artifact


def follow(stage: Stage, families: Mapping[str, Family], item: Item, config: Path | None, running: Running) -> None:
    """Do an item while its input grows, to the end of that. Raises UsageError where its family cannot, ItemError."""
    if Path(item.output).suffix != ".mp4":
        raise UsageError(f"output {item.output} does not end with .mp4", "--follow makes a video and nothing else")
    name = stage.inputs[0].name
    path = Path(item.inputs[name])
    while not (artifact := latest(path)):
        log("waiting", stage=stage.name, input=str(path))
        time.sleep(10 * POLL)
    model, family, item = complete(stage, families, replace(item, inputs={name: str(artifact.path)}), config)
    worker = find_worker(family.workers[stage.name])(Setting(model, take_device(running.device, running.threads)))
    worker.load(item.options, "")
    worker.follow(path, artifact, item.options, Path(item.output))
