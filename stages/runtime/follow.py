"""Process an input that is still being made: decode it to a video that grows."""

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
from stages.runtime.loop import Settings
from stages.runtime.options import Family
from stages.runtime.shard import complete
from stages.runtime.stages import Stage
from stages.runtime.worker import import_class

POLL = 0.5  # seconds between two checks of an unfinished input


def trail(output: Path) -> Path:
    """Path of the link, beside an output, to its unfinished state in the store.

    The link exists only while the state does.
    """
    return output.with_name(f"{output.stem}.partial{output.suffix}")


def latest(path: Path) -> Artifact | None:
    """The artifact if it is complete, else its unfinished state, else None.

    Raises ItemError for an unreadable artifact or a failure.
    """
    there = next((place for place in (path, trail(path)) if place.is_file()), None)
    if there is None:
        return None
    artifact = artifacts.read(there, KINDS)
    if artifact.failure:
        raise ItemError(artifact.failure.reason, artifact.failure.remedy)
    return artifact


def follow(stage: Stage, families: Mapping[str, Family], item: Item, config: Path | None, settings: Settings) -> None:
    """Process an item while its input grows, until the input is complete.

    Raises UsageError if the family cannot do that, ItemError for an input that fails.
    """
    if Path(item.output).suffix != ".mp4":
        raise UsageError(f"output {item.output} does not end with .mp4", "--follow makes a video and nothing else")
    name = stage.inputs[0].name
    path = Path(item.inputs[name])
    while not (artifact := latest(path)):
        log("waiting", stage=stage.name, input=str(path))
        time.sleep(10 * POLL)
    model, family, item = complete(stage, families, replace(item, inputs={name: str(artifact.path)}), config)
    implementation, device = family.stages[stage.name], take_device(settings.device, settings.threads)
    worker = import_class(implementation.worker)(model, device)
    options = implementation.options.of(item.options)
    worker.load(options)
    worker.follow(path, artifact, options, Path(item.output))
