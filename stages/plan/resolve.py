"""Resolve every option of a clip. The precedence is: command line > clip > run > model > recipe > default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from stages.plan.clips import OWN
from stages.plan.families import ALL_FAMILIES, ROLES
from stages.plan.links import source_files
from stages.plan.names import part_of_name, path_fault
from stages.plan.recipes import RECIPES
from stages.plan.takes import Takes
from stages.runtime.canonical import canonical_json
from stages.runtime.errors import JobError, UsageError, did_you_mean, shown
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.options import Family, Option, Options, option, rename_aliases, resolve
from stages.runtime.presets import check_preset
from stages.runtime.stages import STAGES


class PromptOption(Options):
    prompt: str = option("", "Prompt of every clip that has none of its own, instead of a caption")


(PROMPT,) = PromptOption.declared


@dataclass(frozen=True)
class Run:
    """A run of the config. `models` maps a family to its model, or to None if the run has no model of it."""

    name: str
    folder: str
    store: str
    recipe: str
    models: Mapping[str, Model | None]
    options: Mapping[str, Any]
    overriding: Mapping[str, Any]
    film: str
    seed: int
    resources: Mapping[str, Any]  # `resources` of the config
    fuse: bool  # whether one job does several steps of a shard
    scores: tuple[str, ...] = ()  # what is measured of its films without a model
    scorers: tuple[Model, ...] = ()  # models that score its films
    private: bool = False  # whether prompts stay out of the metadata of its videos
    captions: Mapping[tuple[str, int], str] = field(default_factory=dict)  # prompts of its caption sheet, by clip and link

    @property
    def generator(self) -> Model:
        """The model that generates."""
        return next(m for family, m in self.models.items() if m and ROLES["model"].stage in ALL_FAMILIES[family].stages)

    @property
    def all_models(self) -> list[Model]:
        """All models that the run uses."""
        return [*filter(None, self.models.values()), *self.scorers]


class ResolvedOptions(dict[str, dict[str, Any]]):
    """Option values by family, and under "recipe". Thousands of clips without options of their own share one instance."""

    def __init__(self, values: Mapping[str, dict[str, Any]]):
        super().__init__(values)
        self._of_stage: dict[str, tuple[Family, Mapping[str, Any]]] = {}
        self._changed: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        self._with_seed: dict[int, ResolvedOptions] = {}

    def for_stage(self, stage: str) -> tuple[Family, Mapping[str, Any]]:
        """The family that implements the stage, and the values of the stage's options."""
        if stage not in self._of_stage:
            family = next(ALL_FAMILIES[name] for name in self if name in ALL_FAMILIES and stage in ALL_FAMILIES[name].stages)
            options = {option.name: self[family.name][option.name] for option in family.options_of(stage)}
            self._of_stage[stage] = family, options
        return self._of_stage[stage]

    def changed(self, stage: str, own: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of the stage's options, updated with `own`. Consecutive clips with the same values share the result."""
        _, options = self.for_stage(stage)
        if all(options[name] == value for name, value in own.items()):
            return options
        last, merged = self._changed.get(stage, (None, {}))
        if last != own:
            merged = {**options, **own}
            self._changed[stage] = own, merged
        return merged

    def with_seed(self, more: int) -> ResolvedOptions:
        """These values with seeds that are higher by `more`."""
        if more not in self._with_seed:
            values = {name: {**own, "seed": own["seed"] + more} if "seed" in own else own for name, own in self.items()}
            self._with_seed[more] = ResolvedOptions(values)
        return self._with_seed[more]


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip with resolved options; a recipe turns it into items.

    The takes of a clip are clips too: `take` is the number of this one, and `first_take` the first one, None in that itself.
    """

    run: Run
    id: str
    index: int
    rank: int
    video: str
    image: str
    prompts: tuple[str, ...]
    values: ResolvedOptions
    take: int = 1
    first_take: Clip | None = None

    @property
    def has_takes(self) -> bool:
        """Whether each take is a film. In a chain, takes are of links, and the recipe makes them."""
        return issubclass(RECIPES[self.run.recipe].OPTIONS, Takes)

    @property
    def sources(self) -> list[str]:
        """The user's videos and images that the clip starts from, those of single links too."""
        of_links = source_files(self.values["recipe"].get("link_sources", ()))
        return [path for path in (self.video, self.image, *of_links) if path]

    @property
    def generator(self) -> Family:
        """The family of the model that generates."""
        return ALL_FAMILIES[self.run.generator.family]

    @property
    def generating(self) -> Mapping[str, Any]:
        """The option values of the family of the model that generates."""
        return self.values[self.generator.name]

    def only_prompt(self) -> str:
        """The prompt of the clip; "" if it has none. Raises UsageError if it has several."""
        if len(self.prompts) > 1:
            raise UsageError(
                f"clip {self.id} of run {self.run.name} has {len(self.prompts)} prompts", f"{self.run.recipe} takes one"
            )
        return self.prompts[0] if self.prompts else ""

    def prompt_to_caption(self, given: str, link: int = 1) -> str:
        """The prompt of an item that captions: that of the caption sheet, else the given one; "" for one to be captioned."""
        return self.run.captions.get((self.row_id, link), given)

    def has_edited_caption(self, link: int) -> bool:
        """Whether the caption sheet has a prompt for a link."""
        return (self.row_id, link) in self.run.captions

    @property
    def row_id(self) -> str:
        """The id of the clip's row, which its takes share."""
        return self.first_take.id if self.first_take else self.id

    def step(self, name: str) -> str:
        """Path of an intermediate artifact of this clip."""
        return f"{self.run.folder}/steps/{self.id}/{name}"

    def result(self, template: str, **fields: Any) -> str:
        """Path of a result, from a name template."""
        return f"{self.run.folder}/{self.name(template, **fields)}"

    def name(self, template: str, **fields: Any) -> str:
        stem = part_of_name(PurePath(self.video or self.image).stem) or self.id
        known = {"clip": self.id, "stem": stem, "idx": self.index, "rank": self.rank, "model": self.run.generator.name}
        known["take"] = self.take
        known |= fields
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
        """An item of a stage. The keyword arguments are inputs of the stage, without those that are empty, and options that
        the recipe sets.
        """
        family, _ = self.values.for_stage(stage)
        names = [spec.name for spec in STAGES[stage].inputs]
        inputs = {name: inputs_and_options[name] for name in names if inputs_and_options.get(name)}
        own = {name: value for name, value in inputs_and_options.items() if name not in names}
        if self.run.private and any(option.name == "private" for option in family.options_of(stage)):
            own["private"] = True
        model = self.run.models.get(family.name)
        return Item(
            id=self._id(label),
            inputs=inputs,
            output=output,
            options=self.values.changed(stage, own),
            model=model.name if model else "",
        )

    def item_of_scorer(self, model: Model, output: str, *, label: str = "", **inputs: str) -> Item:
        """The item by which a model scores a film or a clip, with the options of the model's declaration."""
        declared = ALL_FAMILIES[model.family].options_of("score")
        options = resolve(declared, rename_aliases(declared, model.all_options), model.variant)
        given = {name: path for name, path in inputs.items() if path}
        return Item(self._id(label), given, output, options, model.name)

    def _id(self, label: str) -> str:
        return f"{self.id}/{label}" if label else self.id

    def film_item(self, film: str, pixels: str, **further: Any) -> Item:
        """The item of `concat` that makes a film of one clip. What else decode was asked to write is put beside the film."""
        extras = any(self.generating.get(name) for name in ("save_gif", "save_frames", "visualize"))
        return self.item("concat", film, clips=[pixels], extras=extras, **further)


def options_of(run: Run, name: str) -> tuple[Option, ...]:
    """The options of a family, or of the run's recipe for "recipe"."""
    return RECIPES[run.recipe].OPTIONS.declared if name == "recipe" else ALL_FAMILIES[name].options


def all_options_of(run: Run) -> list[Option]:
    """The options of all families of a run and of its recipe."""
    return [PROMPT, *(option for name in (*run.models, "media", "recipe") for option in options_of(run, name))]


def resolve_options(run: Run, own: Mapping[str, Any]) -> ResolvedOptions:
    """The option values of a clip with options of its `own`. Raises UsageError for an unknown option or an invalid value."""
    recipe = RECIPES[run.recipe]
    known = {name for option in all_options_of(run) for name in (option.name, *option.aliases)}
    of_run = [name for name in run.options if name not in known]
    if unknown := of_run or [name for name in own if name not in known]:
        hints = [f"{name} ({hint})" if (hint := did_you_mean(name, known)) else name for name in unknown]
        such = "options" if len(unknown) > 1 else "option"
        remedy = f"recipe {run.recipe} and its models have no such {such}: leave {'them' if len(unknown) > 1 else 'it'} out"
        raise UsageError(f"{f'run {run.name}' if of_run else 'it'} sets {', '.join(hints)}", remedy)
    values = {}
    for name in (*run.models, "media", "recipe"):
        model, options = run.models.get(name), options_of(run, name)
        deciding = model if name in run.models else run.generator  # media and recipe use the options of the generator
        given: dict[str, Any] = {"seed": run.seed, **recipe.DEFAULTS}
        for layer in (deciding.all_options if deciding else {}, run.options, own, run.overriding):
            given |= rename_aliases(options, layer)
        variant = model.variant if model else ""
        given = {option.name: given[option.name] for option in options if option.name in given and not option.set_by_recipe}
        values[name] = resolve(options, given, variant)
        if name != "recipe":
            check_preset(model, ALL_FAMILIES[name], values[name])
            ALL_FAMILIES[name].check(variant, values[name], model.sizes if model else ())
            if not own:  # otherwise the clip alone fails, in encode
                check_limits(model, ALL_FAMILIES[name], values[name])
    return ResolvedOptions(values)


def preset_advice(run: Run, resolved: ResolvedOptions) -> list[str]:
    """Sentences about values that the preset of a model of the run advises against."""
    models = [(ALL_FAMILIES[name], model) for name, model in run.models.items() if model]
    return [sentence for family, model in models for sentence in check_preset(model, family, resolved[family.name])]


def check_limits(model: Model | None, family: Family, values: Mapping[str, Any]) -> None:
    """Raise UsageError for options that the configs in the model's folder rule out.

    A missing or unreadable folder is ignored here: the job that checks the weights reports it.
    """
    if model is None:
        return
    try:
        fault = family.model_fault(folder, values) if (folder := model.here()) else None
    except JobError:
        return
    if fault:
        raise UsageError(f"{fault[0]} (model {model.name})", fault[1])


def resolve_clip(run: Run, row: Mapping[str, Any], index: int, resolved: dict[bytes, ResolvedOptions]) -> Clip:
    """A row with its options resolved, in the first shard. `resolved` caches the values of equal rows.

    Raises UsageError, naming the clip.
    """
    own = {name: value for name, value in row.items() if name not in OWN}
    prompts = prompts_of(run, row)
    key = canonical_json(own)
    try:
        if key not in resolved:
            resolved[key] = resolve_options(run, own)
    except UsageError as error:
        raise UsageError(f"clip {row['id']} of run {run.name}: {error.reason}", error.remedy) from None
    return Clip(run, row["id"], index, 0, row.get("video", ""), row.get("image", ""), prompts, resolved[key])


def prompts_of(run: Run, row: Mapping[str, Any]) -> tuple[str, ...]:
    """The prompts of a clip, with the precedence command line > clip > run > model. Empty if it has to be captioned."""
    if is_given(run.overriding.get("prompt")):
        return (run.overriding["prompt"],)
    if row.get("prompts") or row.get("prompt"):
        return tuple(row.get("prompts") or [row["prompt"]])
    places = [run.options, *(model.options for model in run.models.values() if model)]
    return tuple(place["prompt"] for place in places if is_given(place.get("prompt")))[:1]


def is_given(prompt: Any) -> bool:
    """Whether a prompt is not blank."""
    return bool(str(prompt or "").strip())
