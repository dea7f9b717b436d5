"""From the items of a manifest, or one typed by hand, to the item loop: find the models, settle the options, run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.runtime import artifacts, weights
from stages.runtime.artifacts import Failure
from stages.runtime.errors import ItemError, JobError, UsageError
from stages.runtime.items import Item
from stages.runtime.loop import Loop, Plant, Running, mark
from stages.runtime.model import Model, find_model
from stages.runtime.options import Family, resolve
from stages.runtime.places import output_fault, writing_fault
from stages.runtime.stages import Stage
from stages.runtime.store import Store


@dataclass
class Batch:
    """The items of one model."""

    family: Family
    model: Model | None
    items: list[Item]


def run_items(
    stage: Stage, families: Mapping[str, Family], items: Sequence[Item], config: Path | None, running: Running
) -> None:
    """Run the items, a loop per model. Raises JobError when some failed and failures are not, or cannot be, marked."""
    batches, failures = batch_by_model(stage, families, items, config)
    marked = running.mark_failed
    found = [failure for output, failure in failures.items() if not (marked and mark(output, failure))]
    for batch in batches:
        check_model(stage, batch)
        with store_of(batch, running.store) as store:
            report = Loop(plant_of(stage, batch), store, running).run(batch.items)
        found += report.unmarked if marked else report.failures
    if found:
        if len(items) == 1:
            raise ItemError(found[0].reason, found[0].remedy)
        raise JobError(f"{len(found)} of {len(items)} items failed, the first is {found[0]}")


def batch_by_model(
    stage: Stage, families: Mapping[str, Family], items: Sequence[Item], config: Path | None
) -> tuple[list[Batch], dict[str, Failure]]:
    """The items with their options settled, by model; and by output, the failures of those whose model cannot be told."""
    suffix = artifacts.KINDS[stage.writes].suffix
    batches: dict[tuple[str, str], Batch] = {}
    failures = {}
    for item in items:
        if not item.output.endswith(suffix):
            raise UsageError(f"output {item.output} does not end with {suffix}", f"{stage.name} writes {suffix}")
        if os.path.isdir(item.output):
            raise UsageError(f"output {item.output} is a folder", "remove it, or choose another output")
        try:
            model, family, completed = complete(stage, families, item, config)
        except ItemError as error:
            failures[item.output] = Failure(stage.name, item.id, error.reason, error.remedy)
            continue
        batches.setdefault((completed.model, family.name), Batch(family, model, [])).items.append(completed)
    return list(batches.values()), failures


def check_model(stage: Stage, batch: Batch) -> None:
    """Ask what the model's loaders will, before any item is begun. Raises JobError."""
    if batch.model and any(batch.family.needs_model(stage.name, item.options) for item in batch.items):
        weights.check(batch.model, batch.family, stage.name)


@contextmanager
def store_of(batch: Batch, folder: Path | None) -> Iterator[Store]:
    """The store that was named, or one for this run alone, beside the first output that can be written: files of both can be
    linked."""
    if folder is not None:
        if fault := writing_fault(folder):
            raise JobError(f"the store {folder} cannot be written ({fault})", "mend that, or choose another --store")
        store = Store(folder)
        store.sweep()
        yield store
        return
    outputs = [Path(item.output) for item in batch.items]
    beside = next((output for output in outputs if not output_fault(output)), outputs[0]).parent
    try:
        beside.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".kinemake-", dir=beside)
    except OSError as error:
        raise JobError(f"{beside} cannot be written ({error.strerror})", "choose another place for the output") from error
    with temporary as name:
        yield Store(Path(name))


def plant_of(stage: Stage, batch: Batch) -> Plant:
    family = batch.family
    return Plant(
        stage,
        family.workers[stage.name],
        family.of_stage(stage.name),
        batch.model,
        version=(family.name, family.version),
        weights=family.weights.get(stage.name, ()),
        resident=family.resident.get(stage.name, ()),
        needs_model=family.needs_model,
        memory_saving=family.memory_saving.get(stage.name, {}),
    )


def complete(
    stage: Stage, families: Mapping[str, Family], item: Item, config: Path | None
) -> tuple[Model | None, Family, Item]:
    """The item with its model found and every option of the family resolved. Raises UsageError for an unknown option."""
    facts = _facts(stage, item)
    name = item.model or facts.get("model", "")
    model = find_model(name, config, families) if stage.model and name else None
    if model:
        family = families.get(model.family)
        if family is None:
            raise UsageError(
                f"model {model.name} is of family {model.family}", f"{stage.name} knows {', '.join(families) or 'none'}"
            )
    elif len(families) == 1:
        (family,) = families.values()
    else:
        raise UsageError("no model is given", "add --model NAME, FOLDER or HUB_ID")
    options = family.of_stage(stage.name)
    known = {option.name for option in options}
    if unknown := [key for key in item.options if key not in known]:
        raise UsageError(
            f"option {unknown[0]} is not one of {stage.name} for family {family.name}",
            f"known are {', '.join(sorted(known))}",
        )
    declared = {key: value for key, value in (model.all_options if model else {}).items() if key in known}
    values = resolve(options, {**declared, **item.options}, model.variant if model else "", known=facts)
    if model is None and stage.model and family.needs_model(stage.name, values):
        raise UsageError("no model is given", "add --model NAME, FOLDER or HUB_ID")
    return model, family, replace(item, options=values, model=model.name if model else "")


def _facts(stage: Stage, item: Item) -> dict[str, Any]:
    """Fields of the artifact that the item reads first, for defaults that depend on it, the model above all.

    Raises ItemError for one that cannot be read, where it would have to tell the model. Else the loop will say it.
    """
    spec = stage.inputs[0]
    if "file" in spec.kinds or spec.many:
        return {}
    try:
        return artifacts.read(Path(item.inputs[spec.name]), spec.kinds).fields
    except ItemError:
        if item.model:
            return {}
        raise
