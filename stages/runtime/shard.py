"""Run a list of items: find their models, resolve their options, and pass them to the item loop."""

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
from stages.runtime.log import log
from stages.runtime.loop import Loop, Settings, mark
from stages.runtime.model import Model, find_model
from stages.runtime.options import Family, rename_aliases, resolve
from stages.runtime.places import output_fault, writing_remedy
from stages.runtime.presets import check_preset
from stages.runtime.stages import Stage
from stages.runtime.store import Store


@dataclass
class Batch:
    """The items of one model."""

    family: Family
    model: Model | None
    items: list[Item]


def run_items(
    stage: Stage, families: Mapping[str, Family], items: Sequence[Item], config: Path | None, settings: Settings
) -> None:
    """Run the items, one loop per model.

    Raises JobError if items failed and their failures are not, or cannot be, written in place of the outputs.
    """
    found, _ = attempt_items(stage, families, items, config, settings)
    raise_failures(found, len(items))


def raise_failures(found: Sequence[Failure], items: int) -> None:
    """Raise the failures of a number of items as one error: ItemError of a single item, else JobError."""
    if found and items == 1:
        raise ItemError(found[0].reason, found[0].remedy)
    if found:
        raise JobError(f"{len(found)} of {items} items failed, the first is {found[0]}")


def attempt_items(
    stage: Stage, families: Mapping[str, Family], items: Sequence[Item], config: Path | None, settings: Settings
) -> tuple[list[Failure], set[str]]:
    """Run the items, one loop per model.

    Returns the failures that are not, or cannot be, written in place of the outputs, and the outputs of all failed items.
    """
    batches, failures = batch_by_model(stage, families, items, config)
    marked = settings.mark_failed
    found = [failure for output, failure in failures.items() if not (marked and mark(output, failure))]
    unmade = set(failures)
    settings = settings.with_gpus_of(item for batch in batches for item in batch.items)
    for batch in batches:
        check_model(stage, batch)
        with store_of(batch, settings.store) as store:
            report = Loop(stage, batch.family, batch.model, store, settings).run(batch.items)
        found += report.unmarked if marked else report.failures
        unmade.update(report.unmade)
    return found, unmade


def batch_by_model(
    stage: Stage, families: Mapping[str, Family], items: Sequence[Item], config: Path | None
) -> tuple[list[Batch], dict[str, Failure]]:
    """Group items by model, with options resolved. Also the failures of items whose model is unknown, by output path."""
    suffixes = tuple(artifacts.KINDS[kind].suffix for kind in stage.writes)
    batches: dict[tuple[str, str], Batch] = {}
    failures = {}
    for item in items:
        if not item.output.endswith(suffixes):
            known = " or ".join(suffixes)
            raise UsageError(f"output {item.output} does not end with {known}", f"{stage.name} writes {known}")
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
    """Run the checks of the model's loaders before any item starts. Raises JobError."""
    if batch.model and any(map(batch.family.stages[stage.name].needs_model, (item.options for item in batch.items))):
        weights.check(batch.model, batch.family, stage.name)


@contextmanager
def store_of(batch: Batch, folder: Path | None) -> Iterator[Store]:
    """The store in `folder`, or a temporary one.

    A temporary store lies beside the first writable output, because hard links need the same file system. Raises JobError.
    """
    if folder is not None:
        store = Store(folder)
        if fault := store.fault():
            remedy = f"{writing_remedy(fault)}, or choose another --store"
            raise JobError(f"the store {folder} cannot be written ({fault})", remedy)
        with store.in_use():
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


def complete(
    stage: Stage, families: Mapping[str, Family], item: Item, config: Path | None
) -> tuple[Model | None, Family, Item]:
    """The item with its model found and every option resolved. Raises UsageError for an unknown option."""
    facts = _facts(stage, item)
    name = item.model or facts.get("model", "")
    model = find_model(name, config, families) if stage.model and name else None
    if model:
        family = families.get(model.family)
        if family is None:
            raise UsageError(
                f"model {model.name} is of family {model.family}", f"{stage.name} knows {', '.join(families) or 'none'}"
            )
    elif len(without := [one for one in families.values() if not one.stages[stage.name].weights]) == 1:
        (family,) = without
    elif len(families) == 1:
        (family,) = families.values()
    else:
        raise UsageError("no model is given", "add --model NAME, FOLDER or HUB_ID")
    options = family.options_of(stage.name)
    known = {option.name for option in options}
    given = rename_aliases(options, item.options)
    if unknown := [key for key in given if key not in known]:
        raise UsageError(
            f"option {unknown[0]} is not one of {stage.name} for family {family.name}",
            f"known are {', '.join(sorted(known))}",
        )
    declared = rename_aliases(options, model.all_options) if model else {}
    values = resolve(options, {**declared, **given}, model.variant if model else "", known=facts)
    for advice in check_preset(model, family, values):
        log("warning", item=item.id, reason=advice)
    if model is None and stage.model and family.stages[stage.name].needs_model(values):
        raise UsageError("no model is given", "add --model NAME, FOLDER or HUB_ID")
    return model, family, replace(item, options=values, model=model.name if model else "")


def _facts(stage: Stage, item: Item) -> dict[str, Any]:
    """Fields of the item's first input artifact. Defaults may depend on them, above all the model.

    Raises ItemError for an unreadable artifact if it has to name the model. Otherwise the loop reports the error.
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
