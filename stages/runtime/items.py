"""Items: the work of one stage on one clip, link or interval. An item is a line of a manifest and the input of a worker."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.runtime.errors import UsageError, shown
from stages.runtime.lineage import Lineage
from stages.runtime.stages import STAGES, Stage, stage_of
from stages.runtime.text import is_plain, read_jsonl

RESERVED = {"id", "output", "model", "lineage", "again"}


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    `inputs` maps the name of an input to a path or a list of paths; `options` maps the name of an option to its value. The
    plan sets `lineage`, which is recorded beside the result. An item with `again` is not taken from the store.
    """

    id: str
    inputs: Mapping[str, Any]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    lineage: Lineage | None = None
    again: bool = False

    @property
    def files(self) -> list[str]:
        """All input paths, in the order in which the stage declares its inputs."""
        return [path for value in self.inputs.values() for path in (value if isinstance(value, list) else [value])]

    @property
    def fingerprint(self) -> str:
        """Digest of the work of the item and of all earlier ones; "" for an item by hand."""
        return self.lineage.fingerprint if self.lineage else ""

    def line(self, step: str = "") -> str:
        """The item as a line of a manifest: a flat object with the names of the command line.

        In the manifest of a fused job it begins with the item's step.
        """
        row = {**({"step": step} if step else {}), "id": self.id, **self.inputs, "output": self.output}
        row |= {name: value for name in ("model", "again") if (value := getattr(self, name))}
        row |= {"lineage": self.lineage.row()} if self.lineage else {}
        return json.dumps({**row, **self.options}, ensure_ascii=False)


def read_manifest(path: Path, stage: Stage) -> list[Item]:
    """The items of a manifest. Raises UsageError, with the line number, for a line that is not an item of the stage."""
    items = [item_of_line(row, stage, place) for place, row in read_jsonl(path)]
    check_items(items, path)
    return items


def read_steps(path: Path) -> list[tuple[Stage, list[Item]]]:
    """The stage and the items of each step in the manifest of a fused job, in order.

    Raises UsageError, with the line number, for a line that is not an item of its step.
    """
    steps: dict[str, tuple[Stage, list[Item]]] = {}
    for place, row in read_jsonl(path):
        step = row.pop("step", None)
        try:
            stage = stage_of(str(step))
        except KeyError:
            raise UsageError(f"{place} has the step {shown(step)}", f"begin it with a stage: {', '.join(STAGES)}") from None
        steps.setdefault(step, (stage, []))[1].append(item_of_line(row, stage, place))
    check_items([item for _, items in steps.values() for item in items], path)
    return list(steps.values())


def item_of_line(row: Mapping[str, Any], stage: Stage, place: str) -> Item:
    """The item of a line of a manifest. Raises UsageError."""
    if not isinstance(row.get("output"), str) or not row["output"]:
        raise UsageError(f"{place} has no output", 'add "output": the path of the file to make')
    return item_of_row(row, stage, place)


def check_items(items: Sequence[Item], path: Path) -> None:
    """Raise UsageError for a manifest without items, and for two items with one output."""
    if not items:
        raise UsageError(f"{path} has no line", "write one object per line")
    refuse_double_outputs(items, str(path))


def refuse_double_outputs(items: Sequence[Item], where: str) -> None:
    """Raise UsageError if two items have the same output."""
    outputs = Counter(os.path.realpath(item.output) for item in items)
    if twice := next((output for output, count in outputs.items() if count > 1), ""):
        raise UsageError(f"{where} makes {os.path.relpath(twice)} twice", "every item needs an output of its own")


def item_of_row(row: Mapping[str, Any], stage: Stage, where: str) -> Item:
    """An item from named values. A null counts as absent, and "~" is expanded. Raises UsageError."""
    row = {name: value for name, value in row.items() if value is not None}
    names = {spec.name: spec for spec in stage.inputs}
    if missing := [spec.name for spec in stage.inputs if spec.required and not row.get(spec.name)]:
        raise UsageError(f"{where} has no {missing[0]}", f"{stage.name} reads {', '.join(names)}")
    inputs = {name: _paths(row[name], spec.many, name, where) for name, spec in names.items() if row.get(name)}
    model = row.get("model", "")
    if not isinstance(model, str):
        raise UsageError(f"model of {where} is {shown(model)}", "it must be a model's folder, Hub id, or name in the config")
    try:
        lineage = Lineage.of_row(row["lineage"]) if "lineage" in row else None
    except (ValueError, TypeError, LookupError):
        remedy = "leave it as it was planned, or leave it out"
        raise UsageError(f"lineage of {where} is {shown(row['lineage'])}", remedy) from None
    item = Item(
        id=str(row.get("id") or Path(row["output"]).name),
        inputs=inputs,
        output=_path(row["output"], "output", where),
        options={key: value for key, value in row.items() if key not in names and key not in RESERVED},
        model=os.path.expanduser(model),
        lineage=lineage,
        again=row.get("again") is True,
    )
    check_output(item)
    return item


def _paths(value: Any, many: bool, name: str, where: str) -> str | list[str]:
    if not isinstance(value, list if many else str):
        raise UsageError(f"{name} of {where} is {shown(value)}", f"it must be {'paths in a list' if many else 'a path'}")
    return [_path(one, name, where) for one in value] if many else _path(value, name, where)


def _path(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} of {where} is {shown(value)}", "it must be a path")
    if not is_plain(value):
        raise UsageError(f"{name} of {where} is {shown(value)}, whose name is not UTF-8", "rename the file")
    return os.path.expanduser(value)


def check_output(item: Item) -> None:
    """Raise UsageError if the output would overwrite an input, also under another name."""
    output = Path(item.output)
    claimed = [output, output.with_suffix(".json")] if output.suffix == ".mp4" else [output]  # the index of a film
    for path in item.files:
        for place in claimed:
            if os.path.realpath(place) == os.path.realpath(path) or _same(place, path):
                raise UsageError(f"output {output} would overwrite {path}, which is read", "choose another output")


def _same(one: Path, other: str) -> bool:
    """Whether two paths are the same file, as hard links are."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
