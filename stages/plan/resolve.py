"""A clip with every option settled: command line > clip > run > model > recipe > default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.plan.clips import OWN
from stages.plan.families import ALL
from stages.plan.names import path_fault
from stages.plan.recipes import RECIPES
from stages.runtime.artifacts import canonical
from stages.runtime.errors import JobError, UsageError, shown
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.options import Family, Option, resolve
from stages.runtime.stages import STAGES

PROMPT = Option("prompt", str, "", "The prompt of every clip that has none of its own; nothing is captioned", ())


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
    resources: Mapping[str, Mapping[str, int]]


class Values(dict[str, dict[str, Any]]):
    """Option values by family (and "recipe"). Clips without options of their own share one: there may be thousands."""

    def __init__(self, values: Mapping[str, dict[str, Any]]):
        super().__init__(values)
        self._of_stage: dict[str, tuple[Family, Mapping[str, Any]]] = {}
        self._changed: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}

    def of_stage(self, stage: str) -> tuple[Family, Mapping[str, Any]]:
        """The family that does the stage, and the values of the stage's options."""
        if stage not in self._of_stage:
            family = next(ALL[name] for name in self if name in ALL and stage in ALL[name].workers)
            options = {option.name: self[family.name][option.name] for option in family.of_stage(stage)}
            self._of_stage[stage] = family, options
        return self._of_stage[stage]

    def changed(self, stage: str, own: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of the stage's options with some `own`; clip after clip with the same ones share them."""
        _, options = self.of_stage(stage)
        if all(options[name] == value for name, value in own.items()):
            return options
        last, merged = self._changed.get(stage, (None, {}))
        if last != own:
            merged = {**options, **own}
            self._changed[stage] = own, merged
        return merged


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip, resolved: what a recipe turns into items."""

    run: Run
    id: str
    index: int
    rank: int
    video: str
    image: str
    prompts: tuple[str, ...]
    values: Values

    def step(self, name: str) -> str:
        """Path of an artifact of this clip that lies between the stages."""
        return f"{self.run.folder}/steps/{self.id}/{name}"

    def result(self, template: str, **fields: Any) -> str:
        """Path of a result, named by a template."""
        return f"{self.run.folder}/{self.name(template, **fields)}"

    def name(self, template: str, **fields: Any) -> str:
        model = next((m for family, m in self.run.models.items() if m and "generate" in ALL[family].workers), None)
        known = {"clip": self.id, "idx": self.index, "rank": self.rank, "model": model.name if model else "", **fields}
        try:
            name = template.format_map(known)
        except KeyError as error:
            raise UsageError(
                f"the name template {template!r} of run {self.run.name} cannot be filled ({error})",
                f"its fields are {', '.join(known)}",
            ) from None
        if fault := path_fault(name):
            raise UsageError(f"the name template {template!r} gives clip {self.id} the name {shown(name)}", fault)
        return name

    def item(self, stage: str, output: str, *, label: str = "", **inputs_and_options: Any) -> Item:
        """An item of a stage: the stage's inputs by name, and options that the recipe sets itself."""
        family, _ = self.values.of_stage(stage)
        names = [spec.name for spec in STAGES[stage].inputs]
        inputs = {name: inputs_and_options[name] for name in names if name in inputs_and_options}
        own = {name: value for name, value in inputs_and_options.items() if name not in names}
        model = self.run.models.get(family.name)
        return Item(
            id=f"{self.id}/{label}" if label else self.id,
            inputs=inputs,
            output=output,
            options=self.values.changed(stage, own),
            model=model.name if model else "",
        )


def options_of(run: Run, name: str) -> tuple[Option, ...]:
    """The options of a family, or of the run's recipe under "recipe"."""
    return RECIPES[run.recipe].OPTIONS if name == "recipe" else ALL[name].options


def settle(run: Run, own: Mapping[str, Any]) -> Values:
    """The option values of a clip with options of its `own`. Raises UsageError for a value that an option does not take."""
    recipe = RECIPES[run.recipe]
    known = {option.name for name in (*run.models, "media", "recipe") for option in options_of(run, name)} | {PROMPT.name}
    if strange := [name for name in {**run.options, **own} if name not in known]:
        raise UsageError(
            f"run {run.name} sets {strange[0]}", f"recipe {run.recipe} and its models have no such option: leave it out"
        )
    generating = [model for family, model in run.models.items() if model and "generate" in ALL[family].workers]
    values = {}
    for name in (*run.models, "media", "recipe"):
        model = run.models.get(name)
        given: dict[str, Any] = {"seed": run.seed, **recipe.DEFAULTS}
        for deciding in [model] if name in run.models else generating:  # media and recipe follow the model that generates
            given |= deciding.all_options if deciding else {}
        given |= {**run.options, **own, **run.overriding}
        variant = model.variant if model else ""
        options = options_of(run, name)
        given = {option.name: given[option.name] for option in options if option.name in given and not option.by_recipe}
        values[name] = resolve(options, given, variant)
        if name != "recipe":
            ALL[name].check(variant, values[name], model.sizes if model else ())
            if not own:  # a clip with options of its own fails alone, in encode
                check_limits(model, ALL[name], values[name])
    return Values(values)


def check_limits(model: Model | None, family: Family, values: Mapping[str, Any]) -> None:
    """Raise UsageError for options that the configs in the model's folder rule out, as far as that is here and readable: the
    job that looks at its weights says what it is not."""
    try:
        fault = family.beyond(folder, values) if model and (folder := model.here()) else None
    except JobError:
        return
    if fault:
        raise UsageError(f"{fault[0]} (model {model.name})", fault[1])


def resolve_clip(run: Run, row: Mapping[str, Any], index: int, rank: int, settled: dict[bytes, Values]) -> Clip:
    """A row with its options settled; `settled` remembers what was settled before. Raises UsageError, naming the clip."""
    own = {name: value for name, value in row.items() if name not in OWN}
    prompts = prompts_of(run, row)
    key = canonical(own)
    try:
        if key not in settled:
            settled[key] = settle(run, own)
    except UsageError as error:
        raise UsageError(f"clip {row['id']} of run {run.name}: {error.reason}", error.remedy) from None
    return Clip(run, row["id"], index, rank, row.get("video", ""), row.get("image", ""), prompts, settled[key])


def prompts_of(run: Run, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompts that are given for a clip: command line > clip > run > model; none where it is to be captioned."""
    if is_given(prompt := run.overriding.get("prompt")):
        return (prompt,)
    if row.get("prompts") or row.get("prompt"):
        return tuple(row.get("prompts") or [row["prompt"]])
    places = [run.options, *(model.options for model in run.models.values() if model)]
    return tuple(place["prompt"] for place in places if is_given(place.get("prompt")))[:1]


def is_given(prompt: Any) -> bool:
    """Whether a prompt says anything: a blank one is as none."""
    return bool(str(prompt or "").strip())
