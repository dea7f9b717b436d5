"""Declarations: options, and the stages of a family.

A class of options has one field per option. Click parameters, the JSON schema, the store key and the tables in `docs/` are
built from these classes, so each option is declared once. This module must not import torch, because `--help` and the plan
use it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self, dataclass_transform, get_args, get_origin, get_type_hints

from stages.runtime.components import Component
from stages.runtime.errors import UsageError, choice_remedy, in_quotes, is_scalar, shown, type_remedy
from stages.runtime.hub import is_source
from stages.runtime.text import is_plain

TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
DTYPES = ("bfloat16", "float16", "float32")  # precisions of a model
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
NEVER = object()  # equal to no value
REQUIRED = object()  # default of an option that must be given


@dataclass(frozen=True)
class Option:
    """An option, as a field of a class of options declares it; see `option` for the attributes."""

    name: str
    type: Any  # int, float, str or bool
    optional: bool  # None is allowed
    many: bool  # a list of values
    default: Any
    help: str
    unit: str = ""
    choices: tuple = ()
    minimum: float | None = None
    maximum: float | None = None
    aliases: tuple[str, ...] = ()
    neutral: Any = NEVER
    changes_result: bool = True
    reloads: bool = False
    offloads: tuple = ()
    stores: tuple = ()
    is_file: bool = False
    is_path: bool = False
    exists: str = ""
    form: Callable[[Any], Any] | None = None
    check: Callable[[Any], str | None] | None = None
    default_text: str = ""
    set_by_recipe: bool = False
    widened: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def is_neutral(self, value: Any) -> bool:
        return value in self.neutral if isinstance(self.neutral, tuple) else value == self.neutral

    def parse(self, value: Any) -> Any:
        """The normalised value, converted from text if it comes from a CSV cell or a command line.

        Raises UsageError for a value of the wrong type or outside the allowed range.
        """
        if self.many:
            values = value if isinstance(value, (list, tuple)) else [value]
            if self.is_file:
                values = [value for value in values if value != ""]  # so that "" takes away the files of a model
            return [self._parse_one(v) for v in values]
        return None if value is None and self.optional else self._parse_one(value)

    def _parse_one(self, value: Any) -> Any:
        value = self._convert(value)
        if self.is_file and is_source(value):
            raise self._wrong(value, "name it in the options of a model in the config, so that fetch downloads it")
        if self.is_path or self.is_file:
            value = os.path.expanduser(value)
        if self.form:
            value = self.form(value)
        if self.choices and value not in self.choices:
            raise self._wrong(value, choice_remedy(self.choices))
        if self.minimum is not None and value < self.minimum:
            raise self._wrong(value, f"it must be at least {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise self._wrong(value, f"it must be at most {self.maximum}")
        if self.check and (problem := self.check(value)):
            raise self._wrong(value, problem)
        return value

    def _convert(self, value: Any) -> Any:
        """The value as the option's type. Raises UsageError for another type, an infinite number or unprintable text."""
        if self.type is bool and isinstance(value, str) and value.strip().lower() in TRUE | FALSE:
            return value.strip().lower() in TRUE
        converted: Any = value
        if (self.type in (int, float) and isinstance(value, str)) or (self.type is float and type(value) is int):
            try:
                converted = self.type(value)
            except (ValueError, OverflowError):
                pass
        if self.type is int and type(value) is float and value.is_integer():
            converted = int(value)
        if type(converted) is not self.type:
            if self.choices:
                raise self._wrong(value, choice_remedy(self.choices))
            remedy = type_remedy([JSON_TYPES[self.type]])
            raise self._wrong(value, in_quotes(value) if self.type is str and is_scalar(value) else remedy)
        if self.type is float and not math.isfinite(converted):
            raise self._wrong(value, "it must be a finite number")
        if self.type is str and not is_plain(converted):
            raise self._wrong(value, "it must be UTF-8 text without NUL characters")
        return converted

    def _wrong(self, value: Any, remedy: str) -> UsageError:
        return UsageError(f"option {self.name} is {shown(value)}", remedy)

    def schema(self) -> dict[str, Any]:
        """JSON schema of the values that `parse` accepts.

        Numbers and booleans may be text, because CSV cells and command lines are text. A list may be a single value.
        """
        one: dict[str, Any] = {"type": JSON_TYPES[self.type]}
        if self.choices:
            one["enum"] = list(self.choices)
        if self.minimum is not None:
            one["minimum"] = self.minimum
        if self.maximum is not None:
            one["maximum"] = self.maximum
        forms = [one] if self.type is str else [one, {"type": "string"}]
        if self.many:
            forms = [{"type": "array", "items": {"anyOf": forms} if len(forms) > 1 else one}, *forms]
        description = f"{self.help}{f' [{self.unit}]' if self.unit else ''}. Default: {self.describe_default()}."
        return {**(one if forms == [one] else {"anyOf": forms}), "description": description}

    def describe_default(self) -> str:
        """The default as text."""
        if self.default_text:
            return self.default_text
        if self.default is None:
            return "none"
        return "empty" if self.default in ("", [], ()) else str(self.default)


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    choices: tuple = (),
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: tuple[str, ...] = (),
    neutral: Any = NEVER,
    changes_result: bool = True,
    reloads: bool = False,
    offloads: tuple = (),
    stores: tuple = (),
    is_file: bool = False,
    is_path: bool = False,
    exists: str = "",
    form: Callable[[Any], Any] | None = None,
    check: Callable[[Any], str | None] | None = None,
    default_text: str = "",
    set_by_recipe: bool = False,
    widened: bool = False,
) -> Any:
    """A field of a class of options; its annotation is the type of the option.

    Args:
        default: a value, or a function `(variant, values) -> value`. `variant` is the model's; `values` are the options
            declared before this one.
        help: what the option does, in a sentence that can be read alone.
        unit: unit of the value, such as "frames".
        choices: allowed values; empty: any.
        minimum, maximum: bounds of a number, inclusive.
        aliases: names of older programs that a config and a command line may use too.
        neutral: the value that gives the same result as before the option existed, or a tuple of such values. It keeps the
            keys of finished work, so an option that is added to a stage later needs one.
        changes_result: False if no value changes the result.
        reloads: a different value requires reloading the model.
        offloads: the values that keep weights in main memory.
        stores: the values that are a precision in which weights are kept in memory, instead of that of option dtype.
        is_file: the value is a path, and the content of the file changes the result.
        is_path: the value is a path. "~" is expanded, as it is for a file.
        exists: "file" or "folder" for a conversion's source, which must exist or lie on the model hub (hub://OWNER/NAME).
        form: function value -> normalised value; raises UsageError.
        check: function value -> error text, or None.
        default_text: the default as text, if it is a function or long.
        set_by_recipe: set by the recipe or on a stage's command line, never in a config.
        widened: the option, a list, took a single value in earlier versions. One value keeps the key that it had then.
    """
    return field(metadata={"default": default, **{name: value for name, value in locals().items() if name != "default"}})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option,))
class Options:
    """Base of the classes of options: those of a stage of a family, of a recipe, or of a training, with their values.

    A subclass inherits the options of its bases and may redeclare them.
    """

    declared: ClassVar[tuple[Option, ...]] = ()

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)
        hints = get_type_hints(cls)
        cls.declared = tuple(_declared(one, hints[one.name]) for one in _fields(cls).values())

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """An instance with these values. They must be complete; other names in `values` are ignored."""
        return cls(**{one.name: values[one.name] for one in cls.declared})

    @classmethod
    def resolved(cls, given: Mapping[str, Any], variant: str = "") -> Self:
        """An instance with the given values, and defaults for the rest. Raises UsageError."""
        return cls.of(resolve(cls.declared, rename_aliases(cls.declared, given), variant))

    def values(self) -> dict[str, Any]:
        """The values, by name."""
        return dict(vars(self))

    def reloading(self) -> tuple[str, ...]:
        """The values on which the loaded model depends, as text."""
        return tuple(repr(getattr(self, one.name)) for one in self.declared if one.reloads)

    @classmethod
    def redeclared(cls, name: str, **changes: Any) -> Any:
        """A field that redeclares an option of this class with `changes`."""
        return field(metadata={**_fields(cls)[name].metadata, **changes})


def _fields(cls: Any) -> dict[str, dataclasses.Field]:
    """The dataclass fields of a class of options, by name."""
    return {one.name: one for one in dataclasses.fields(cls)}


def _declared(one: dataclasses.Field, hint: Any) -> Option:
    """The option of a field whose type hint is X, X | None or list[X]."""
    many, kinds = get_origin(hint) is list, get_args(hint) or (hint,)
    (kind,) = [kind for kind in kinds if kind is not NoneType]
    return Option(one.name, kind, NoneType in kinds, many, **one.metadata)


class BatchOption(Options):
    """Option of a worker that computes items together, see `batching.BatchWorker`. A batch changes a result by rounding."""

    batch_size: int = option(
        1, "Clips that are computed together", unit="clips", minimum=1, maximum=64, changes_result=False
    )


GPUS, PARALLEL = "gpus", "parallel"


def default_parallel(variant: str, values: Mapping[str, Any]) -> str:
    return "cfg" if values[GPUS] == 2 else "layers"


class GpusOption(Options):
    gpus: int = option(
        1,
        "Number of GPUs per clip; parallel says how they share the work",
        minimum=1,
        maximum=64,
        changes_result=False,
        reloads=True,
    )
    parallel: str = option(
        default_parallel,
        "How several GPUs share a clip: cfg, one of two makes the passes of the negative prompt, each with the whole model; "
        "ulysses, all make each pass together, each a part of the clip; layers, the layers of the model are distributed "
        "over them, for weights that fit on no single GPU",
        choices=("cfg", "ulysses", "layers"),
        default_text="cfg with 2 GPUs, else layers",
        neutral=("cfg", "layers"),
        reloads=True,
    )


def gpus_of_model(values: Mapping[str, Any]) -> int:
    """The number of GPUs over which the weights of one process are distributed; the others have ranks of their own."""
    gpus = values.get(GPUS, 1)
    return gpus if (values.get(PARALLEL) or default_parallel("", {GPUS: gpus})) == "layers" else 1


def resolve(
    options: Iterable[Option], given: Mapping[str, Any], variant: str = "", known: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """The value of every option: the given one, parsed, else the default. Other names in `given` are ignored.

    `known` holds further values that defaults may use: the fields of the input artifact. Raises UsageError.
    """
    values: dict[str, Any] = {}
    for one in options:
        if one.name in given:
            values[one.name] = one.parse(given[one.name])
        else:
            values[one.name] = one.default(variant, {**known, **values}) if callable(one.default) else one.default
    return values


def merged(options: Sequence[Option]) -> Option:
    """One option that accepts the values of all these options of one name."""
    types = {option.type for option in options}
    choices = dict.fromkeys(choice for option in options for choice in option.choices)
    return dataclasses.replace(
        options[0],
        type=types.pop() if len(types) == 1 else str,
        choices=tuple(choices) if all(option.choices for option in options) else (),
        many=any(option.many for option in options),
        aliases=tuple(dict.fromkeys(alias for option in options for alias in option.aliases if alias != options[0].name)),
    )


def rename_aliases(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Option values under the options' own names instead of aliases.

    The same value may be given under several names, as where one config lies over another. Raises UsageError for different
    values of one option.
    """
    names = {alias: one.name for one in options for alias in one.aliases}
    renamed: dict[str, Any] = {}
    used: dict[str, str] = {}
    for name, value in given.items():
        own = names.get(name, name)
        if own in renamed and renamed[own] != value:
            raise UsageError(
                f"{name} is {shown(value)} and {used[own]} is {shown(renamed[own])}, two names of one option",
                "leave one of them out",
            )
        renamed[own], used[own] = value, name
    return renamed


@dataclass(frozen=True)
class Conversion:
    """A conversion of published checkpoints into a repository that the stages load.

    Attributes:
        convert: the function `(options, output)` as "module:function"; imported when called.
        options: the class of its options.
        help: help text of the command.
        reads: function option values -> glob patterns of the files that are read of a folder, by the option that names it.
        links: options whose files are hard-linked; the others are written anew.
        settings: function option values -> the settings of the model that it writes, but for the family. A plan knows
            them before the conversion is done.
        version: increased when it writes something else.
    """

    convert: str
    options: type[Options]
    help: str
    reads: Callable[[Mapping[str, Any]], Mapping[str, tuple[str, ...]]] = lambda values: {}
    links: tuple[str, ...] = ()
    settings: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda values: {}
    version: int = 1


@dataclass(frozen=True)
class Preset:
    """A published release of a model as option values, for instance one that needs few steps.

    Attributes:
        source: where its figures are published.
        variant: the architecture that it is for.
        options: the values that the release was trained for. Another value is refused.
        files: addresses on the model hub of the files that options name. Such an option may name further files.
        advised: values that may be changed: another value is warned of. A list has to contain them.
    """

    source: str
    variant: str
    options: Mapping[str, Any]
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    advised: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """All values."""
        return {**self.options, **self.files, **self.advised}


@dataclass(frozen=True)
class Published:
    """What is published at a place: a folder, or a repository of the model hub.

    Attributes:
        place: path of the folder, or hub://OWNER/NAME.
        names: of its files, down to two levels.
        variant: the variant that the declaration of the model names, or "".
    """

    place: str
    names: Sequence[str]
    variant: str = ""

    def find(self, *patterns: str) -> str:
        """The path or address of the first file that matches the first of the patterns that has one; "" for none."""
        found = (name for pattern in patterns for name in self.names if fnmatch(name, pattern))
        return next((f"{self.place}/{name}" for name in found), "")

    def converted_by(self, name: str, **values: str) -> str:
        """The command line of `convert NAME` with these option values."""
        words = [word for option, value in values.items() if value for word in (f"--{option.replace('_', '-')}", value)]
        output = f"models/{os.path.basename(self.place)}" if self.place.startswith("hub://") else f"{self.place}-converted"
        return f"run {shlex.join(['convert', name, *words, '--output', output])}, and use that output as the model"


@dataclass(frozen=True)
class Training:
    """A training of a family's models. `task` is a class, as "module:Class"; imported when the training starts."""

    task: str
    options: type[Options]
    help: str


Together = Mapping[str, str]  # components in memory at the same time: folder below the model's -> precision
DTYPE = ""  # stands for the precision in which the options keep weights, see `Implementation.precision`


@dataclass(frozen=True)
class Implementation:
    """A family's implementation of a stage.

    Attributes:
        worker: the worker class as "module:Class"; imported when the work starts.
        options: the class of the stage's options.
        weights: glob patterns, below the model's folder, of the files that the result depends on.
        in_memory: groups of components. Those of a group are in memory together, one group after the other: a group in
            each phase, if the worker has as many phases. "." is the model's folder itself.
        on_out_of_memory: options for a second attempt after memory ran out.
        needs_model: function options -> whether an item needs the model.
        extra: optional dependencies in pyproject.toml, where the family needs more of them than the stage names.
        minutes: function (variant, option values of the family) -> upper estimate of the minutes that an item takes, for a
            scheduler. None: that of the stage.
    """

    worker: str
    options: type[Options]
    weights: tuple[str, ...] = ()
    in_memory: tuple[Together, ...] = ()
    on_out_of_memory: Mapping[str, Any] = field(default_factory=dict)
    needs_model: Callable[[Mapping[str, Any]], bool] = lambda values: True
    extra: str = ""
    minutes: Callable[[str, Mapping[str, Any]], float] | None = None

    def files_in(self, values: Mapping[str, Any]) -> dict[str, list[str]]:
        """The paths of the files that option values name, by option."""
        named = {one.name: values.get(one.name) for one in self.options.declared if one.is_file}
        return {name: value if isinstance(value, list) else [value] for name, value in named.items() if value}

    def precision(self, values: Mapping[str, Any]) -> str:
        """The precision in which the networks of DTYPE are in memory: that of an option that stores them so, else dtype."""
        stored = [values[one.name] for one in self.options.declared if values.get(one.name) in one.stores]
        return stored[0] if stored else values.get("dtype", "")


FRAME, LATENTS = "frame", "latents"
HANDOVERS = (FRAME, LATENTS)
BEFORE, FIRST, NO_IMAGE = "before", "first", ""


@dataclass(frozen=True)
class Handover:
    """How a link of a chain goes on from the one before.

    Attributes:
        from_latents: the link starts from the latents of the one before, else from its last frames.
        image: what encode is given as the image: BEFORE, the clip before; FIRST, the image that the first link starts from;
            NO_IMAGE where the latents suffice.
        options: options of encode that belong to it.
        fault: function option values -> (reason, remedy) if the values do not suffice for it, else None.
    """

    from_latents: bool = False
    image: str = BEFORE
    options: Mapping[str, Any] = field(default_factory=dict)
    fault: Callable[[Mapping[str, Any]], tuple[str, str] | None] = lambda values: None


@dataclass(frozen=True)
class Family:
    """The declaration of a model family; it does not import torch.

    Attributes:
        name: name of the family in a config.
        version: increased when results change.
        stages: the family's implementation of each stage, by the stage's name.
        variants: names of the architectures, if there are several.
        components: components of a model's folder, for validation before loading.
        detect: function folder -> variant of the model in it ("" if the family has none), or None for another family.
        check: function (variant, option values, sizes of the model) that validates options together; raises UsageError.
        model_fault: function (model folder, option values) -> (reason, remedy) if the model cannot do what the options
            ask for, else None.
        disk: function options of encode -> approximate bytes of a clip's files, from encode to the film.
        fit_first_frame: function (variant, option values) -> options of extract_frames for a frame that encode accepts, or
            None for a variant that takes no first frame. A family that reads more of a video than its last frame says so
            by `select` and `count`. None if the family does not continue clips from a frame.
        handovers: function variant -> the ways in which a link of a chain can go on, by name.
        from_text: variants that generate a clip from a prompt alone.
        trainings: commands of `train`, by name.
        conversion: the command `convert FAMILY`, if there is one.
        recognise: function published files -> remedy if they are a model of the family in a layout that the stages cannot
            load, such as its authors' own; None for all else.
        files: glob patterns of the files of a model that no stage reads, but a training does.
        presets: published releases as option values, by the name that a model's declaration gives.
    """

    name: str
    version: int
    stages: Mapping[str, Implementation]
    variants: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()
    detect: Callable[[Path], str | None] = lambda folder: None
    check: Callable[[str, Mapping[str, Any], tuple[str, ...]], None] = lambda variant, values, sizes: None
    model_fault: Callable[[Path, Mapping[str, Any]], tuple[str, str] | None] = lambda folder, values: None
    disk: Callable[[Mapping[str, Any]], float] = lambda values: 0
    fit_first_frame: Callable[[str, Mapping[str, Any]], Mapping[str, Any] | None] | None = None
    handovers: Callable[[str], Mapping[str, Handover]] = lambda variant: {FRAME: Handover()}
    from_text: tuple[str, ...] = ()
    trainings: Mapping[str, Training] = field(default_factory=dict)
    conversion: Conversion | None = None
    recognise: Callable[[Published], str | None] = lambda published: None
    files: tuple[str, ...] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The options of all stages, each once."""
        declared = (one for stage in self.stages.values() for one in stage.options.declared)
        return tuple({one.name: one for one in declared}.values())

    def options_of(self, stage: str) -> tuple[Option, ...]:
        return self.stages[stage].options.declared
