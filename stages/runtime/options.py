"""A declared option, and a family's declaration of its options.

Click parameters, the JSON schema, the store key and the tables in `docs/` are all made from these declarations, so an
option is written down once. Nothing here may import torch: `--help` and the plan read these.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.runtime.components import Component
from stages.runtime.errors import UsageError, in_quotes, is_scalar, shown
from stages.runtime.text import is_plain

TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
DTYPES = ("bfloat16", "float16", "float32")  # the precisions that models can be run in
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


@dataclass(frozen=True)
class Option:
    """One option of a family or a stage.

    `default` is a value, or a function `(variant, values) -> value` of the model's variant and the options already
    resolved (an option may look only at those declared before it); `default_text` says such a default in words.
    """

    name: str
    type: type
    default: Any
    help: str
    stages: tuple[str, ...]
    unit: str = ""
    choices: tuple = ()
    minimum: float | None = None
    maximum: float | None = None
    many: bool = False
    changes_result: bool = True
    reloads: bool = False  # another value needs the model loaded anew
    offloads: tuple = ()  # the values with which weights stay in main memory
    is_file: bool = False  # the value is a path, and the file's content is what changes the result
    is_path: bool = False  # the value is a path, in which "~" is the home folder, as in that of a file
    form: Callable[[Any], Any] | None = None  # value -> the one spelling of it; raises UsageError
    check: Callable[[Any], str | None] | None = None  # -> what is wrong with the value, or None
    default_text: str = ""
    by_recipe: bool = False  # set by the recipe: a person sets it by hand only, not in a config

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, value: Any) -> Any:
        """The value in its one form, converted from text where it came from a CSV cell or a command line.

        Raises UsageError when the value has the wrong type or lies outside what is allowed.
        """
        if self.many:
            values = value if isinstance(value, (list, tuple)) else [value]
            return [self._parse_one(v) for v in values]
        optional = self.default is None or callable(self.default)  # a function may give None for a variant
        return None if value is None and optional else self._parse_one(value)

    def _parse_one(self, value: Any) -> Any:
        value = self._convert(value)
        if self.is_path or self.is_file:
            value = os.path.expanduser(value)
        if self.form:
            value = self.form(value)
        if self.choices and value not in self.choices:
            raise self._wrong(value, f"it must be one of {', '.join(map(str, self.choices))}")
        if self.minimum is not None and value < self.minimum:
            raise self._wrong(value, f"it must be at least {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise self._wrong(value, f"it must be at most {self.maximum}")
        if self.check and (problem := self.check(value)):
            raise self._wrong(value, problem)
        return value

    def _convert(self, value: Any) -> Any:
        """The value as the option's type, a number finite. Raises UsageError."""
        if self.type is bool and isinstance(value, str) and value.strip().lower() in TRUE | FALSE:
            return value.strip().lower() in TRUE
        converted = value
        if self.type in (int, float) and isinstance(value, str) or self.type is float and type(value) is int:
            try:
                converted = self.type(value)
            except (ValueError, OverflowError):
                pass
        if self.type is int and type(value) is float and value.is_integer():
            converted = int(value)
        if type(converted) is not self.type:
            remedy = f"it must be of type {JSON_TYPES[self.type]}"
            raise self._wrong(value, in_quotes(value) if self.type is str and is_scalar(value) else remedy)
        if self.type is float and not math.isfinite(converted):
            raise self._wrong(value, "it must be a finite number")
        if self.type is str and not is_plain(converted):
            raise self._wrong(value, "it must be UTF-8 text without NUL characters")
        return converted

    def _wrong(self, value: Any, remedy: str) -> UsageError:
        return UsageError(f"option {self.name} is {shown(value)}", remedy)

    def schema(self) -> dict[str, Any]:
        """The option as a JSON schema property: what `parse` takes.

        Text is allowed for numbers and truth values, because CSV cells and command lines are text; one value for a list too.
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
        description = f"{self.help}{f' [{self.unit}]' if self.unit else ''}. Default: {self.says()}."
        return {**(one if forms == [one] else {"anyOf": forms}), "description": description}

    def says(self) -> str:
        """The default, in words."""
        if self.default_text:
            return self.default_text
        if self.default is None:
            return "none"
        return "empty" if self.default in ("", [], ()) else str(self.default)


GPUS = Option(
    "gpus",
    int,
    1,
    "GPUs of a job; the model's layers are spread over them",
    ("generate",),
    minimum=1,
    maximum=64,
    changes_result=False,
    reloads=True,
)


def resolve(
    options: Iterable[Option], given: Mapping[str, Any], variant: str = "", known: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Every option's value: the given one, parsed, else the default. Other names in `given` are ignored.

    `known` are facts that a default may look at beside the options: the fields of the artifact that is read.
    """
    values: dict[str, Any] = {}
    for option in options:
        if option.name in given:
            values[option.name] = option.parse(given[option.name])
        else:
            default = option.default
            values[option.name] = default(variant, {**known, **values}) if callable(default) else default
    return values


@dataclass(frozen=True)
class Training:
    """A training of a family's models: `task` names its class as "module:Class", imported only when it begins."""

    task: str
    options: tuple[Option, ...]
    help: str


Resident = tuple[tuple[tuple[str, str], ...], ...]  # groups of (component, precision), see Family


@dataclass(frozen=True)
class Family:
    """The torch-free face of one kind of model: its options, and where the code of each of its stages is.

    `version` is raised when results change. `workers` names a class per stage as "module:Class", imported only when a
    model is needed. `weights` names, per stage, the files (glob patterns below the model's folder) that the stage's
    result depends on. `detect` tells the variant of a model folder, or None when the folder is not of this family.
    `components` are the parts of a model's folder, for what is asked of them before they are loaded.
    `check` looks at resolved options together: (variant, values, the model's own sizes); it raises UsageError.
    `beyond` looks at them beside the configs in a model's folder: what the model cannot do of it, and the remedy; else None.
    `resident` names, per stage, the groups of components that are in memory together, one group after the other: pairs of a
    folder below the model's ("." is that itself) and a precision (empty: the option dtype).
    `memory_saving` names, per stage, the options that an item is tried again with after memory ran out.
    `disk` tells by the options of encode about how many bytes the files of a clip take, from that to its film.
    `trainings` are the commands of `train`, by name.
    """

    name: str
    version: int
    options: tuple[Option, ...]
    workers: Mapping[str, str]
    weights: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    components: tuple[Component, ...] = ()
    detect: Callable[[Path], str | None] = lambda folder: None
    check: Callable[[str, Mapping[str, Any], tuple[str, ...]], None] = lambda variant, values, sizes: None
    beyond: Callable[[Path, Mapping[str, Any]], tuple[str, str] | None] = lambda folder, values: None
    needs_model: Callable[[str, Mapping[str, Any]], bool] = lambda stage, values: True
    resident: Mapping[str, Resident] = field(default_factory=dict)
    memory_saving: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    disk: Callable[[Mapping[str, Any]], float] = lambda values: 0
    trainings: Mapping[str, Training] = field(default_factory=dict)

    def of_stage(self, stage: str) -> tuple[Option, ...]:
        return tuple(option for option in self.options if stage in option.stages)
