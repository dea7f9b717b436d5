"""The identity of a result, as a digest. The store and the plan both use it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.runtime.canonical import canonical_json
from stages.runtime.options import Family, Option
from stages.runtime.stages import Stage


def digest_options(options: Iterable[Option], values: Mapping[str, Any]) -> str:
    """SHA-256 of the option values that change the result, without those of files.

    An option with its neutral value is left out, as if it were not declared.
    """
    changing = {
        one.name: only_one(values[one.name]) if one.widened else values[one.name]
        for one in options
        if one.changes_result and not one.is_file and not one.is_neutral(values[one.name])
    }
    return hashlib.sha256(canonical_json(changing)).hexdigest()


def only_one(values: Sequence[Any]) -> Any:
    """The value of a list of one, else the list: options that took a single value keep the keys that they had."""
    return values[0] if len(values) == 1 else values


def digest_work(
    stage: Stage,
    family: Family,
    options: str,
    files: Mapping[str, Sequence[Any]],
    inputs: Mapping[str, Any],
    weights: str = "",
) -> str:
    """SHA-256 of the work of an item.

    Args:
        options: digest of the options.
        files: identities of the files that an option names, by the option's name.
        inputs: identity of the inputs, by name.
        weights: digest of the model files that the stage reads.
    """
    producer = [stage.name, stage.version, family.name, family.version, weights]
    named = {name: only_one(identities) for name, identities in files.items()}
    return hashlib.sha256(canonical_json([producer, options, named, inputs])).hexdigest()
