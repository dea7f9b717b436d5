"""A clip with every option settled: command line > clip > run > model > recipe > default."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from stages.plan.families import ALL
from stages.plan.recipes import RECIPES
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


@dataclass(frozen=True)
class Clip:
    """A clip, resolved: what a recipe turns into items. `values` holds a family's option values by family name."""

    run: Run
    id: str
    index: int
    rank: int
    video: str
    prompts: tuple[str, ...]
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def work(self, name: str) -> str:
        """Path of an artifact of this clip."""
        return f"{self.run.folder}/work/{self.id}/{name}"

    def result(self, template: str, **fields: Any) -> str:
        """Path of a result, named by a template."""
        return f"{self.run.folder}/{self.name(template, **fields)}"

    def name(self, template: str, **fields: Any) -> str:
        model = self.run.models.get(self.family("generate").name)
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

    def family(self, stage: str) -> Family:
        """The family that does a stage of this clip: the one of the run's models, else the media stages' own."""
        return next(family for name, family in ALL.items() if name in self.values and stage in family.workers)

    def item(self, stage: str, output: str, *, label: str = "", **inputs_and_options: Any) -> Item:
        """An item of a stage: the stage's inputs by name, and options that the recipe sets itself."""
        family, names = self.family(stage), {spec.name for spec in STAGES[stage].inputs}
        inputs = {name: value for name, value in inputs_and_options.items() if name in names}
        own = {name: value for name, value in inputs_and_options.items() if name not in names}
        values = self.values[family.name]
        options = {option.name: values[option.name] for option in family.of_stage(stage)} | own
        model = self.run.models.get(family.name)
        return Item(
            id=f"{self.id}{f'/{label}' if label else ''}",
            inputs=inputs,
            output=output,
            options=options,
            model=model.name if model else "",
        )


def check_template(template: str, where: str) -> None:
    """Raise UsageError for a template that names an unknown field."""
    for _, name, _, _ in string.Formatter().parse(template):
        if name is not None and name not in TEMPLATE_FIELDS:
            raise UsageError(f"{where} has the field {name!r}", f"known are {', '.join(TEMPLATE_FIELDS)}")


def resolve_clip(run: Run, row: Mapping[str, Any], index: int, rank: int) -> Clip:
    """Settle the options of one row. Raises UsageError, naming the clip, for a value that an option does not take."""
    recipe = RECIPES[run.recipe]
    own = {name: value for name, value in row.items() if name not in ("id", "video", "prompt", "prompts")}
    prompts = tuple(row.get("prompts") or ([row["prompt"]] if row.get("prompt") else []))
    values = {}
    try:
        for name in (*recipe.FAMILIES, "media"):
            family, model = ALL[name], run.models.get(name)
            given = {"seed": run.seed, **recipe.DEFAULTS, **(model.all_options if model else {}), **run.options}
            variant = model.variant if model else ""
            values[name] = resolve(family.options, {**given, **own, **run.overriding}, variant)
            family.check(variant, values[name], model.sizes if model else ())
        given = {**recipe.DEFAULTS, **run.options, **own, **run.overriding}
        values["recipe"] = resolve(recipe.OPTIONS, given)
    except UsageError as error:
        raise UsageError(f"clip {row['id']} of run {run.name}: {error.reason}", error.remedy) from None
    return Clip(run, row["id"], index, rank, row["video"], prompts, values)
