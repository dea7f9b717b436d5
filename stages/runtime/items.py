"""An item: one stage's work for one clip, link or interval. The line of a manifest, and what a worker is handed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.runtime.errors import UsageError, shown
from stages.runtime.stages import Stage
from stages.runtime.text import is_plain, read_jsonl

RESERVED = {"id", "output", "model", "fingerprint", "again"}


@dataclass(frozen=True, slots=True)
class Item:
    """`inputs` maps an input's name to a path, or a list of paths; `options` an option's name to its value.

    A plan gives its items a `fingerprint`, which goes into the record of what the result was made of. An item that is to be
    made `again` is not taken from the store.
    """

    id: str
    inputs: Mapping[str, Any]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    fingerprint: str = ""
    again: bool = False

    @property
    def files(self) -> list[str]:
        """All input paths, in the order in which the stage declares them."""
        return [path for value in self.inputs.values() for path in (value if isinstance(value, list) else [value])]

    def line(self) -> str:
        """The item as a line of a manifest: flat, with the names of the command line."""
        row = {"id": self.id, **self.inputs, "output": self.output}
        row |= {name: value for name in ("model", "fingerprint", "again") if (value := getattr(self, name))}
        return json.dumps({**row, **self.options}, ensure_ascii=False)


def read_manifest(path: Path, stage: Stage) -> list[Item]:
    """The items of a manifest. Raises UsageError, with the line's number, for what cannot be an item of the stage."""
    items = []
    for place, row in read_jsonl(path):
        if not isinstance(row.get("output"), str) or not row["output"]:
            raise UsageError(f"{place} has no output", 'add "output": the path of the file to make')
        items.append(item_of_row(row, stage, place))
    if not items:
        raise UsageError(f"{path} has no line", "write one object per line")
    outputs = Counter(os.path.realpath(item.output) for item in items)
    if twice := next((output for output, count in outputs.items() if count > 1), ""):
        raise UsageError(f"{path} makes {os.path.relpath(twice)} twice", "every item needs an output of its own")
    return items


def item_of_row(row: Mapping[str, Any], stage: Stage, where: str) -> Item:
    """An item of named values. A null is as if it were absent, and "~" is the home folder. Raises UsageError."""
    row = {name: value for name, value in row.items() if value is not None}
    names = {spec.name: spec for spec in stage.inputs}
    if missing := [spec.name for spec in stage.inputs if spec.required and not row.get(spec.name)]:
        raise UsageError(f"{where} has no {missing[0]}", f"{stage.name} reads {', '.join(names)}")
    inputs = {name: _paths(row[name], spec.many, name, where) for name, spec in names.items() if row.get(name)}
    model, fingerprint = row.get("model", ""), row.get("fingerprint", "")
    if not isinstance(model, str):
        raise UsageError(f"model of {where} is {shown(model)}", "it must be a model's folder, Hub id, or name in the config")
    if not isinstance(fingerprint, str):
        raise UsageError(f"fingerprint of {where} is {shown(fingerprint)}", "leave it as it was planned, or leave it out")
    item = Item(
        id=str(row.get("id") or Path(row["output"]).name),
        inputs=inputs,
        output=_path(row["output"], "output", where),
        options={key: value for key, value in row.items() if key not in names and key not in RESERVED},
        model=os.path.expanduser(model),
        fingerprint=fingerprint,
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
    """Raise UsageError where an output would take the place of what the item reads, under whatever name."""
    output = Path(item.output)
    claimed = [output, output.with_suffix(".json")] if output.suffix == ".mp4" else [output]  # a film has a file beside it
    for path in item.files:
        for place in claimed:
            if os.path.realpath(place) == os.path.realpath(path) or _same(place, path):
                raise UsageError(f"output {output} would overwrite {path}, which is read", "choose another output")


def _same(one: Path, other: str) -> bool:
    """Whether two names are of one file, as hard links are."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
