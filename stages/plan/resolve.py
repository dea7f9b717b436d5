"""A clip with every option settled: command line > clip > run > model > recipe > default."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from stages.plan.families import ALL
from stages.plan.recipes import RECIPES
from stages.runtime.artifacts import canonical
from stages.runtime.errors import UsageError
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.options import Family, resolve
from stages.runtime.stages import STAGES

TEMPLATE_FIELDS = ("clip", "idx", "link", "seed", "model", "rank")


@dataclass(frozen=True)
class Run:
    """A named run of the config. `models` maps a family to its model; a family without one has None."""

    name: str
    folder: str
    store: str
    recipe: str
    models: Mapping[str, Model | None]
    options: Mapping[str, Any]
    overriding: Mapping[str, Any]
    film: str
    seed: int


class Values(dict[str, dict[str, Any]]):
    """Option values by family (and "recipe"). Clips without options of their own share one: there may be thousands."""

    def __init__(self, values: Mapping[str, dict[str, Any]]):
        super().__init__(values)
        self._of_stage: dict[str, tuple[Family, Mapping[str, Any]]] = {}

    def of_stage(self, stage: str) -> tuple[Family, Mapping[str, Any]]:
        """The family that does the stage, and the values of the stage's options."""
        if stage not in self._of_stage:
            family = next(ALL[name] for name in self if name in ALL and stage in ALL[name].workers)
            options = {option.name: self[family.name][option.name] for option in family.of_stage(stage)}
            self._of_stage[stage] = family, options
        return self._of_stage[stage]


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip, resolved: what a recipe turns into items."""

    run: Run
    id: str
    index: int
    rank: int
    video: str
    prompts: tuple[str, ...]
    values: Values

    def work(self, name: str) -> str:
        """Path of an artifact of this clip."""
        return f"{self.run.folder}/work/{self.id}/{name}"

    def result(self, template: str, **fields: Any) -> str:
        """Path of a result, named by a template."""
        return f"{self.run.folder}/{self.name(template, **fields)}"

    def name(self, template: str, **fields: Any) -> str:
        model = next((model for family, model in self.run.models.items() if model and family != "vlm"), None)
        known = {"clip": self.id, "idx": self.index, "rank": self.rank, "model": model.name if model else "", **fields}
        try:
            name = template.format_map(known)
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(
                f"the name template {template!r} of run {self.run.name} cannot be filled ({error})",
                f"its fields are {', '.join(known)}",
            ) from None
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.parts[0] in ("work",):
            raise UsageError(f"the name template {template!r} gives {name!r}", "a name stays inside the run's folder")
        return name

    def item(self, stage: str, output: str, *, label: str = "", **inputs_and_options: Any) -> Item:
        """An item of a stage: the stage's inputs by name, and options that the recipe sets itself."""
        family, options = self.values.of_stage(stage)
        names = {spec.name for spec in STAGES[stage].inputs}
        inputs = {name: value for name, value in inputs_and_options.items() if name in names}
        own = {name: value for name, value in inputs_and_options.items() if name not in names}
        changed = any(options[name] != value for name, value in own.items())
        model = self.run.models.get(family.name)
        return Item(
            id=f"{self.id}/{label}" if label else self.id,
            inputs=inputs,
            output=output,
            options={**options, **own} if changed else options,
            model=model.name if model else "",
        )


def check_template(template: str, where: str) -> None:
    """Raise UsageError for a template that names an unknown field."""
    for _, name, _, _ in string.Formatter().parse(template):
        if name is not None and name not in TEMPLATE_FIELDS:
            raise UsageError(f"{where} has the field {name!r}", f"known are {', '.join(TEMPLATE_FIELDS)}")


def settle(run: Run, own: Mapping[str, Any]) -> Values:
    """The option values of a clip with options of its `own`. Raises UsageError for a value that an option does not take."""
    recipe = RECIPES[run.recipe]
    values = {}
    for name in (*recipe.FAMILIES, "media"):
        family, model = ALL[name], run.models.get(name)
        given = {"seed": run.seed, **recipe.DEFAULTS, **(model.all_options if model else {}), **run.options}
        variant = model.variant if model else ""
        values[name] = resolve(family.options, {**given, **own, **run.overriding}, variant)
        family.check(variant, values[name], model.sizes if model else ())
    values["recipe"] = resolve(recipe.OPTIONS, {**recipe.DEFAULTS, **run.options, **own, **run.overriding})
    return Values(values)


def resolve_clip(run: Run, row: Mapping[str, Any], index: int, rank: int, settled: dict[bytes, Values]) -> Clip:
    """A row with its options settled; `settled` remembers what was settled before. Raises UsageError, naming the clip."""
    own = {name: value for name, value in row.items() if name not in ("id", "video", "prompt", "prompts")}
    prompts = tuple(row.get("prompts") or ([row["prompt"]] if row.get("prompt") else []))
    key = canonical(own)
    try:
        if key not in settled:
            settled[key] = settle(run, own)
    except UsageError as error:
        raise UsageError(f"clip {row['id']} of run {run.name}: {error.reason}", error.remedy) from None
    return Clip(run, row["id"], index, rank, row["video"], prompts, settled[key])
