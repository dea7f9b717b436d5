"""An item: one stage's work for one clip, link or interval. The line of a manifest, and what a worker is handed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.runtime.errors import UsageError
from stages.runtime.stages import Stage

RESERVED = {"id", "output", "model"}


@dataclass(frozen=True, slots=True)
class Item:
    """`inputs` maps an input's name to a path, or a list of paths; `options` an option's name to its value."""

    id: str
    inputs: Mapping[str, Any]
    output: str
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    @property
    def files(self) -> list[str]:
        """All input paths, in the order in which the stage declares them."""
        return [path for value in self.inputs.values() for path in (value if isinstance(value, list) else [value])]

    def line(self) -> str:
        """The item as a line of a manifest: flat, with the names of the command line."""
        row = {"id": self.id, **self.inputs, "output": self.output}
        if self.model:
            row["model"] = self.model
        return json.dumps({**row, **self.options}, ensure_ascii=False)


def read_manifest(path: Path, stage: Stage) -> list[Item]:
    """The items of a manifest. Raises UsageError, with the line's number, for what cannot be an item of the stage."""
    items = []
    for number, text in enumerate(Path(path).read_text().split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise UsageError(f"line {number} of {path} is not JSON ({error})", "one object per line") from None
        if not isinstance(row, dict) or not isinstance(row.get("output"), str):
            raise UsageError(f"line {number} of {path} has no output", 'add "output": the path of the file to make')
        items.append(item_of_row(row, stage, f"line {number} of {path}"))
    outputs = [item.output for item in items]
    if twice := {output for output in outputs if outputs.count(output) > 1}:
        raise UsageError(f"{path} makes {sorted(twice)[0]} twice", "every item needs an output of its own")
    return items


def item_of_row(row: Mapping[str, Any], stage: Stage, where: str) -> Item:
    names = {spec.name: spec for spec in stage.inputs}
    if missing := [spec.name for spec in stage.inputs if spec.required and not row.get(spec.name)]:
        raise UsageError(f"{where} has no {missing[0]}", f"{stage.name} reads {', '.join(names)}")
    for name, spec in names.items():
        wanted = list if spec.many else str
        if row.get(name) is not None and not isinstance(row[name], wanted):
            raise UsageError(f"{name} of {where} is {row[name]!r}", "it must be a path" + "s in a list" * spec.many)
    return Item(
        id=str(row.get("id") or Path(row["output"]).name),
        inputs={name: row[name] for name in names if row.get(name)},
        output=row["output"],
        options={key: value for key, value in row.items() if key not in names and key not in RESERVED},
        model=row.get("model") or "",
    )
