"""What the config may say: JSON schemas made from the declared options, and errors that name the key and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, TypeChecker, ValidationError, validators

from stages.models import FAMILIES
from stages.models.shared.noise import SEED
from stages.plan.families import ALL
from stages.plan.names import ID
from stages.plan.recipes import RECIPES
from stages.plan.resolve import PROMPT
from stages.runtime.errors import UsageError, in_quotes, is_scalar, shown
from stages.runtime.model import HUB_ID
from stages.runtime.options import DTYPES, Option
from stages.runtime.stages import STAGES

PLAN_VERSION = 1
TEXT = {"type": "string", "minLength": 1}
PLACE = {  # of what is made: Snakemake reads braces and <> in paths as its own signs
    **TEXT,
    "pattern": r"^[^{}<>\x00-\x1f\x7f-\x9f]*$",
    "patternErrorMessage": "leave out braces, < and >, and control characters",
}
NAME = {
    "type": "string",
    "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$(?!\n)",
    "patternErrorMessage": "a name has 1 to 100 letters, digits, dots, dashes or underscores, a letter or digit first",
}
RESERVED_RUNS = ("store", "all", "training", "weights")


@cache
def all_options() -> dict[str, Option]:
    """Every option that a run may set, by name; what two families call by one name has one description, the default of
    each, and takes what one of them takes."""
    declared = [(name, option) for name, family in ALL.items() for option in family.options]
    declared += [("", PROMPT), *((name, option) for name, recipe in RECIPES.items() for option in recipe.OPTIONS)]
    options: dict[str, Option] = {}
    defaults: dict[str, dict[str, str]] = {}
    bounds: dict[str, list[Option]] = {}
    for owner, option in reversed(declared):
        if not option.by_recipe:
            options[option.name] = option
            defaults.setdefault(option.name, {})[owner] = option.says()
            bounds.setdefault(option.name, []).append(option)
    for name, declarations in bounds.items():
        options[name] = widest(declarations)
    for name, said in defaults.items():
        if len(set(said.values())) > 1:
            words = "; ".join(f"{owner}: {default}" for owner, default in reversed(said.items()))
            options[name] = replace(options[name], default_text=words)
    return options


def widest(declarations: Sequence[Option]) -> Option:
    """Options of one name as one that takes what any of them takes; the last one's description."""
    lows, highs = ([getattr(option, name) for option in declarations] for name in ("minimum", "maximum"))
    choices = [option.choices for option in declarations]
    return replace(
        declarations[-1],
        minimum=None if None in lows else min(lows),
        maximum=None if None in highs else max(highs),
        choices=tuple(dict.fromkeys(choice for some in reversed(choices) for choice in some)) if all(choices) else (),
    )


@cache
def clip_schema() -> dict[str, Any]:
    """A row of clips: what it is made of, and its own options beside that."""
    own = {
        "id": {
            **TEXT,
            "description": "Name of the clip and of its results. Default: made of the video's name or the prompt.",
        },
        "video": {
            **TEXT,
            "description": "Path of the video (video_path in a file does as well). Not for text2video and dynamicrafter.",
        },
        "image": {**TEXT, "description": "Path of the picture, for dynamicrafter."},
        "prompt": {**TEXT, "description": "The prompt; without it the video or the picture is captioned."},
        "prompts": {
            "type": "array",
            "items": TEXT,
            "minItems": 1,
            "description": "A prompt per link of a chain, or per part of a longlive film.",
        },
    }
    options = {name: option.schema() for name, option in all_options().items() if name not in own}
    return {"type": "object", "additionalProperties": False, "required": ["id"], "properties": {**own, **options}}


@cache
def config_schema() -> dict[str, Any]:
    options = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: option.schema() for name, option in all_options().items()},
    }
    variants = sorted({variant for family in FAMILIES.values() for variant in family.variants})
    model = {
        "type": "object",
        "additionalProperties": False,
        "required": ["family"],
        "properties": {
            "family": {"enum": sorted(FAMILIES), "description": "Which code runs the model."},
            "variant": {"enum": variants, "description": "Which of the family's architectures it is."},
            "path": {**TEXT, "description": "Folder of the weights, in diffusers' or transformers' layout."},
            "hub": {
                "type": "string",
                "pattern": HUB_ID,
                "patternErrorMessage": "an id on the model hub is OWNER/NAME",
                "description": "Id on the model hub, instead of path.",
            },
            "revision": {**TEXT, "description": "Commit, tag or branch on the hub. Default: main."},
            "dtype": {"enum": list(DTYPES), "description": "Precision. Default: bfloat16."},
            "sizes": {
                "type": "array",
                "items": TEXT,
                "description": "Sizes that the model makes, width*height. Default: those of the variant.",
            },
            "options": {**options, "description": "Options for every run with this model."},
        },
        "oneOf": [{"required": ["path"]}, {"required": ["hub"]}],
    }
    folder = {
        "type": "object",
        "additionalProperties": False,
        "oneOf": [{"required": ["videos"]}, {"required": ["images"]}],
        "properties": {
            "videos": {
                **TEXT,
                "description": "Folder of videos: .mp4 .avi .mov .mkv, in any case; hidden files are left out.",
            },
            "images": {**TEXT, "description": "Or a folder of pictures: .png .jpg .jpeg .bmp .tiff .tif, in the same way."},
            "prompts": {
                **TEXT,
                "description": "Folder of prompts, a .txt of the same stem per video or picture; or a .txt file with a line "
                "for each, in the order of their names. Default for pictures: their own folder.",
            },
            "masks": {**TEXT, "description": "Folder of videos of masks, of the same stems, for recipe fresco."},
            "missing_prompt": {
                "enum": ["caption", "skip"],
                "description": "What becomes of one without a prompt. Default: caption.",
            },
        },
    }
    run = {
        "type": "object",
        "additionalProperties": False,
        "required": ["recipe", "clips"],
        "properties": {
            "recipe": {"enum": sorted(RECIPES), "description": "What is made of each clip."},
            "clips": {
                "anyOf": [{"type": "array", "items": {"type": "object"}, "minItems": 1}, TEXT, folder],
                "description": "A list of clips, a .jsonl, .csv or .txt file (a prompt per line), or a folder of files.",
            },
            "model": {**TEXT, "description": "Name of the model that generates, from models."},
            "captioner": {**TEXT, "description": "Name of the model that captions; not needed where all have prompts."},
            "name": {
                "type": "string",
                "pattern": r"^[^/].*\.mp4$",
                "patternErrorMessage": "it must end with .mp4, and stay inside the run's folder",
                "description": "Template of the film's name; fields: clip, idx, seed, model, rank, of longlive "
                "sample and model_type, of dynamicrafter image and resolution. Default: {clip}.mp4.",
            },
            "options": {**options, "description": "Options for all clips of the run."},
        },
    }
    asked = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "mem_mb": {"type": "integer", "minimum": 1, "maximum": 10**8, "description": "Main memory in MB."},
            "runtime": {"type": "integer", "minimum": 1, "maximum": 10**6, "description": "Minutes."},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kinemake config",
        "type": "object",
        "additionalProperties": False,
        "required": ["models", "runs"],
        "properties": {
            "results": {**PLACE, "description": "Folder of the results. Default: results."},
            "store": {**PLACE, "description": "Folder of finished items that all runs share. Default: RESULTS/store."},
            "models": {
                "type": "object",
                "propertyNames": NAME,
                "additionalProperties": model,
                "description": "Models by name.",
            },
            "runs": {
                "type": "object",
                "propertyNames": {
                    **NAME,
                    "pattern": f"^(?!({'|'.join(RESERVED_RUNS)})$){NAME['pattern'][1:]}",
                    "patternErrorMessage": f"{NAME['patternErrorMessage']}; of a run it is not {', '.join(RESERVED_RUNS)}",
                },
                "additionalProperties": run,
                "description": "What to make, by name; the results are in RESULTS/NAME.",
            },
            "trainings": {
                "type": "object",
                "propertyNames": NAME,
                "additionalProperties": TEXT,
                "description": "Trainings: name -> file of options. `snakemake training.NAME` fills RESULTS/training/NAME.",
            },
            "again": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Results to make again even if they are current, without taking them from the store: paths "
                "of results, names of jobs or runs, or all. On the command line: `--config 'again=[results/RUN/CLIP.mp4]'`.",
            },
            "resources": {
                "type": "object",
                "additionalProperties": False,
                "properties": dict.fromkeys(STAGES, asked),
                "description": "By stage, what its jobs ask a scheduler for in the place of Kinemake's own estimate; each "
                "retry asks for that much more.",
            },
            "options": {
                **options,
                "description": "Options above all others: for the command line, --config 'options={steps: 20}'.",
            },
        },
    }


def is_left_out(name: str, value: Any) -> bool:
    """Whether the value of an option is blank text where that can only mean that there is none."""
    option = all_options().get(name)
    return isinstance(value, str) and not value.strip() and option is not None and option.type is not str


FIXED_SCHEMA = {  # of plan.json: what the first plan of a run fixed
    "type": "object",
    "required": ["version", "seed", "shards"],
    "properties": {
        "version": {"const": PLAN_VERSION},
        "seed": {"type": "integer", "minimum": 0, "maximum": SEED.maximum},
        "shards": {"type": "array", "items": {"type": "array", "items": {"type": "string", "pattern": f"^{ID.pattern}$"}}},
    },
}


def _is_number(checker: TypeChecker, value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))
    )


FINITE = Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number)  # YAML knows .nan and .inf
Validator = validators.extend(Draft202012Validator, type_checker=FINITE)


@cache
def _validator(which: str) -> Any:
    return Validator({"config": config_schema, "clip": clip_schema, "fixed": lambda: FIXED_SCHEMA}[which]())


def check(value: Any, which: str, where: str) -> None:
    """Raise UsageError with one sentence about the first thing that `value` has wrong.

    `which` is "config", "clip", or "fixed" for the plan.json of a run.
    """
    for error in _validator(which).iter_errors(value):
        raise UsageError(*_sentence(error, where))


def _sentence(error: ValidationError, where: str) -> tuple[str, str]:
    """What is wrong, and the rule that says so."""
    place = ".".join([where, *map(str, error.absolute_path)])
    value, rule = error.instance, error.validator_value
    if error.validator in ("anyOf", "oneOf"):
        # of the alternatives those that are of the value's type say what is wrong with it
        others = {sub.schema_path[0] for sub in error.context if sub.validator == "type" and not sub.relative_path}
        meant = [sub for sub in error.context if sub.schema_path[0] not in others]
        if meant and error.validator == "anyOf":
            return _sentence(meant[0], where)
        if error.validator == "oneOf":
            names = [one["required"][0] for one in rule]
            keys = (
                f"both {' and '.join(names)}" if all(name in value for name in names) else f"neither {' nor '.join(names)}"
            )
            return f"{place} has {keys}", f"it must have one of them: {' or '.join(names)}"
        types = [one["type"] for one in rule if one["type"] != "string"] or ["string"]
        return f"{place} is {shown(value)}", f"it must be of type {' or '.join(dict.fromkeys(types))}"
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in value if key not in known)
        near = difflib.get_close_matches(str(unknown), known, 1)
        listed = f"known: {', '.join(known)}" if len(known) <= 20 else "known are those of docs/options.md"
        remedy = f"did you mean {near[0]}?" if near else listed
        return f"{place} has the unknown key {shown(unknown)}", _misplaced(error, unknown) or remedy
    if error.validator == "required":
        missing = next(key for key in rule if key not in value)
        return f"{place} lacks the key {missing}", error.schema.get("properties", {}).get(missing, {}).get("description", "")
    if "propertyNames" in error.absolute_schema_path:
        remedy = in_quotes(value) if is_scalar(value) else error.schema["patternErrorMessage"]
        return f"{place} has the key {shown(value)}", remedy
    if error.validator == "enum" and is_scalar(value) and str(value) in rule:  # YAML takes 256 for a number
        return f"{place} is the number {value}", f'write it in quotes: "{value}"'
    rules = {
        "enum": lambda: f"it must be one of {', '.join(map(str, rule))}",
        "const": lambda: f"it must be {rule}",
        "type": lambda: in_quotes(value) if rule == "string" and is_scalar(value) else f"it must be of type {rule}",
        "minimum": lambda: f"it must be at least {rule}",
        "maximum": lambda: f"it must be at most {rule}",
        "minLength": lambda: "it must not be empty",
        "maxLength": lambda: f"it must have at most {rule} letters",
        "minItems": lambda: "it must not be empty",
        "pattern": lambda: error.schema.get("patternErrorMessage", f"it must match {rule}"),
    }
    return f"{place} is {shown(value)}", rules[error.validator]()


def _misplaced(error: ValidationError, key: Any) -> str:
    """Where a key belongs that stands at the top of the config, as `--config steps=2` puts it there; empty elsewhere."""
    if error.absolute_path or "runs" not in error.schema["properties"]:
        return ""
    value = shown(error.instance[key]).strip("'")
    if key in all_options():
        return f"it is an option: write --config 'options={{{key}: {value}}}'"
    if key in error.schema["properties"]["runs"]["additionalProperties"]["properties"]:
        runs = error.instance.get("runs")
        run = next(iter(runs), "RUN") if isinstance(runs, Mapping) else "RUN"
        return f"it is a key of a run: write --config 'runs={{{run}: {{{key}: {value}}}}}'"
    return ""
