"""Presets: a model that declares one has the option values of a published release, and refuses what contradicts them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.runtime.errors import UsageError, did_you_mean, shown
from stages.runtime.options import Family, Preset

if TYPE_CHECKING:
    from stages.runtime.model import Model


def with_preset(model: Model, family: Family) -> Model:
    """A model with the option values of its preset below its own. Raises UsageError for an unknown preset."""
    preset = preset_of(model, family)
    return replace(model, options={**preset.values, **model.options}) if preset else model


def preset_of(model: Model, family: Family) -> Preset | None:
    """The preset that a model declares, or None. Raises UsageError for an unknown one."""
    if not model.preset:
        return None
    if model.preset not in family.presets:
        hint = did_you_mean(model.preset, family.presets)
        known = f"family {family.name} has {', '.join(family.presets) or 'none'}"
        raise UsageError(f"preset of model {model.name} is {shown(model.preset)}", f"{hint} {known}".strip())
    return family.presets[model.preset]


def check_preset_variant(model: Model, family: Family) -> None:
    """Raise UsageError for a preset of another architecture than the model's."""
    if (preset := preset_of(model, family)) and preset.variant != model.variant:
        raise UsageError(
            f"preset {model.preset} is for variant {preset.variant} and model {model.name} is {model.variant}",
            "declare it for a model of that variant",
        )


def check_preset(model: Model | None, family: Family, values: Mapping[str, Any]) -> list[str]:
    """Compare option values with the preset of the model. Returns sentences about those that are only advised against.

    `values` may be those of one stage. Raises UsageError for a value that the release was not made for.
    """
    preset = preset_of(model, family) if model else None
    if model is None or preset is None:
        return []
    paths = {source: path for path, source in model.fetched.items()}
    declared = {one.name: one for one in family.options}
    for name, wanted in preset.options.items():
        if name in values and values[name] != declared[name].parse(wanted):
            raise UsageError(
                f"{name} is {shown(values[name])} and preset {model.preset} of model {model.name} has {shown(wanted)}",
                f"leave {name} out, or declare the model without the preset",
            )
    for name, sources in preset.files.items():
        if name in values and (lacking := [one for one in sources if paths.get(one) not in values[name]]):
            raise UsageError(
                f"{name} lacks {lacking[0]}, which preset {model.preset} of model {model.name} consists of",
                f"leave {name} out, or name all files in the options of the model, that address among them",
            )
    return [*advice(model, preset, values)]


def advice(model: Model, preset: Preset, values: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each value that is not the advised one."""
    for name, wanted in preset.advised.items():
        value = values.get(name, wanted)
        if value != wanted and not (isinstance(value, list) and all(one in value for one in wanted)):
            yield f"{name} is {shown(value)}, and preset {model.preset} of model {model.name} was made for {shown(wanted)}"
