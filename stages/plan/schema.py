"""Validate the config and the clips with JSON schemas built from the declared options.

Errors name the key and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from stages.families import FAMILIES
from stages.families.shared.common_options import SeedOption
from stages.plan.families import ALL_FAMILIES, ROLES
from stages.plan.older import BASE_CONFIG, fate_of
from stages.plan.recipes import RECIPES, option_names
from stages.plan.resolve import PROMPT
from stages.plan.scores import DEFAULT, NAMES
from stages.runtime.errors import UsageError, choice_remedy, did_you_mean, in_quotes, is_scalar, shown, type_remedy
from stages.runtime.model import HUB_ID, PLACES
from stages.runtime.options import DTYPES, REQUIRED, Option, merged
from stages.runtime.stages import STAGES

PLAN_VERSION = 1
TEXT = {"type": "string", "minLength": 1}
MINUTES = {"type": "integer", "minimum": 1, "maximum": 10**6}
PLACE = {  # path of an output: braces and <> have a meaning to Snakemake
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
def declarations() -> dict[str, dict[str, Option]]:
    """Every option that a run may set: its declarations by family or recipe, by the option's name."""
    declared = [(name, option) for name, family in ALL_FAMILIES.items() for option in family.options]
    declared += [("", PROMPT)]
    declared += [(name, option) for name, recipe in RECIPES.items() for option in recipe.OPTIONS.declared]
    options: dict[str, dict[str, Option]] = {}
    for owner, option in declared:
        if not option.set_by_recipe:
            options.setdefault(option.name, {})[owner] = option
    for owner, option in declared:
        for alias in set(option.aliases) & options.keys():  # an alias in one family can be a name in another
            options[alias][owner] = option
    return options


@cache
def all_options() -> dict[str, Option]:
    """Every option that a run may set, by name.

    An option of several families accepts the values of any of them, and has the help and default of each.
    """
    return {name: union(declared) for name, declared in declarations().items()}


def union(declared: Mapping[str, Option]) -> Option:
    """One option that accepts the values of all declarations of a name, which are by family."""
    options = list(declared.values())
    lows, highs = ([getattr(option, name) for option in options] for name in ("minimum", "maximum"))
    return replace(
        merged(options),
        help=join_texts({owner: option.help for owner, option in declared.items()}),
        default_text=join_texts({owner: option.describe_default() for owner, option in declared.items()}),
        minimum=None if None in lows else min(lows),
        maximum=None if None in highs else max(highs),
    )


def join_texts(texts: Mapping[str, str]) -> str:
    """Texts with their owners' names, as one text. If all are equal, the text alone."""
    owners: dict[str, list[str]] = {}
    for owner, text in texts.items():
        owners.setdefault(text, []).append(owner)
    if len(owners) == 1:
        return next(iter(owners))
    return "; ".join(f"{', '.join(filter(None, names)) or 'all'}: {text}" for text, names in owners.items())


def option_named(name: Any) -> Option | None:
    """The option with that name or alias, or None."""
    return all_options().get(name) or _options_by_alias().get(name)


@cache
def _options_by_alias() -> dict[str, Option]:
    """Asked for every cell of every clip, so it is computed once."""
    return {alias: option for option in all_options().values() for alias in option.aliases}


def option_properties() -> dict[str, Any]:
    """The schemas of all options, under all their names."""
    properties = {}
    for name, option in all_options().items():
        properties[name] = option.schema()
        for alias in [alias for alias in option.aliases if alias not in all_options()]:
            properties[alias] = {**option.schema(), "description": f"Another name of {name}."}
    return properties


@cache
def clip_schema() -> dict[str, Any]:
    """Schema of a clip: its content, and its own options."""
    own = {
        "id": {
            **TEXT,
            "description": "Name of the clip and of its results. Default: from the name of its file, or from its prompt.",
        },
        "video": {
            **TEXT,
            "description": "Path of the video; video_path in a file is an alias. Not for text2video and dynamicrafter.",
        },
        "image": {**TEXT, "description": "Path of the image, for dynamicrafter."},
        "prompt": {**TEXT, "description": "The prompt. Without it, the video or the image is captioned."},
        "prompts": {
            "type": "array",
            "items": TEXT,
            "minItems": 1,
            "description": "One prompt per link of a chain, or per part of a longlive film.",
        },
    }
    options = {name: value for name, value in option_properties().items() if name not in own}
    return {"type": "object", "additionalProperties": False, "required": ["id"], "properties": {**own, **options}}


def conversion_properties() -> dict[str, Any]:
    """The schemas of the options of all conversions, by name."""
    declared: dict[str, dict[str, Option]] = {}
    for name, family in FAMILIES.items():
        for option in family.conversion.options.declared if family.conversion else ():
            declared.setdefault(option.name, {})[name] = (
                replace(option, default_text="must be given") if option.default is REQUIRED else option
            )
    return {name: union(options).schema() for name, options in declared.items()}


@cache
def config_schema() -> dict[str, Any]:
    options = {
        "type": "object",
        "additionalProperties": False,
        "properties": option_properties(),
    }
    variants = sorted({variant for family in FAMILIES.values() for variant in family.variants})
    model = {
        "type": "object",
        "additionalProperties": False,
        "required": ["family"],
        "properties": {
            "family": {"enum": sorted(FAMILIES), "description": "Model family: the code that runs the model."},
            "variant": {
                "enum": variants,
                "description": "Architecture within the family. Default: detected from the folder.",
            },
            "path": {**TEXT, "description": "Folder of the weights, in the layout of diffusers or transformers."},
            "hub": {
                "type": "string",
                "pattern": HUB_ID,
                "patternErrorMessage": "an id on the model hub is OWNER/NAME",
                "description": "Id on the model hub; instead of path.",
            },
            "convert": {
                "type": "object",
                "additionalProperties": False,
                "properties": conversion_properties(),
                "description": "Options of `convert FAMILY` with files at hub://OWNER/NAME[@REVISION][/PATH]; instead of "
                "path. `fetch` downloads and converts them.",
            },
            "preset": {
                "enum": sorted({name for family in FAMILIES.values() for name in family.presets}),
                "description": "Published few-step release whose option values and LoRA files the model has; "
                "other values are refused.",
            },
            "revision": {**TEXT, "description": "Commit, tag or branch on the hub. Default: main."},
            "dtype": {"enum": list(DTYPES), "description": "Precision of the model. Default: bfloat16."},
            "sizes": {
                "type": "array",
                "items": TEXT,
                "description": "Video sizes that the model supports, width*height. Default: those of the variant.",
            },
            "options": {**options, "description": "Options for every run with this model."},
        },
        "oneOf": [{"required": [place]} for place in PLACES],
    }
    folder = {
        "type": "object",
        "additionalProperties": False,
        "oneOf": [{"required": ["videos"]}, {"required": ["images"]}, {"required": ["films"]}, {"required": ["shots"]}],
        "properties": {
            "videos": {
                **TEXT,
                "description": "Folder of videos: .mp4 .avi .mov .mkv in upper or lower case; hidden files are ignored.",
            },
            "images": {**TEXT, "description": "Folder of images, instead of videos: .png .jpg .jpeg .bmp .tiff .tif."},
            "shots": {**TEXT, "description": "Shot list (.yaml, .jsonl) for recipe chain: films as lists of shots."},
            "films": {
                **TEXT,
                "description": "File of picks (.jsonl) of another run: its films that were kept are continued.",
            },
            "prompts": {
                **TEXT,
                "description": "Folder of prompts, one .txt of the same stem per file; or a .txt file with one line "
                "per file, in the order of their names. Default for images: their own folder.",
            },
            "masks": {**TEXT, "description": "Folder of mask videos with the same stems, for recipe fresco."},
            "missing_prompt": {
                "enum": ["caption", "skip"],
                "description": "Treatment of files without a prompt: caption them, or skip them. Default: caption.",
            },
        },
    }
    caption = {
        "type": "object",
        "additionalProperties": False,
        "required": ["clip", "prompt"],
        "properties": {
            "clip": {**TEXT, "description": "Id of the clip."},
            "link": {"type": "integer", "minimum": 1, "description": "Number of the link of a chain. Default: 1."},
            "prompt": {**TEXT, "description": "The prompt."},
        },
    }
    run = {
        "type": "object",
        "additionalProperties": False,
        "required": ["recipe", "clips"],
        "properties": {
            "recipe": {"enum": sorted(RECIPES), "description": "The pipeline for each clip."},
            "clips": {
                "anyOf": [{"type": "array", "items": {"type": "object"}, "minItems": 1}, TEXT, folder],
                "description": "A list of clips, a .jsonl, .csv or .txt file (a prompt per line), or a folder of files.",
            },
            "captions": {
                "anyOf": [TEXT, {"type": "array", "items": caption}],
                "description": "A caption sheet: captions.csv of the run with edited prompts, or such rows. An edited "
                "prompt takes the place of the caption; see docs/captions.md.",
            },
            **{key: {**TEXT, "description": role.help} for key, role in ROLES.items()},
            BASE_CONFIG: {
                **TEXT,
                "description": "Config file of the older program that the recipe replaces; what it sets is taken over.",
            },
            "name": {
                "type": "string",
                "pattern": r"^[^/].*\.mp4$",
                "patternErrorMessage": "it must end with .mp4, and stay inside the run's folder",
                "description": "Template of the film's name. Fields: clip, stem (the source's file name without its "
                "ending), idx, seed, take, model, rank; for longlive sample and model_type; for dynamicrafter image and "
                "resolution. "
                "Default: {clip}.mp4.",
            },
            "fuse": {
                "enum": [True, False, "true", "false"],  # on Snakemake's command line they are text
                "description": "One job does all stages of its clips up to decode and keeps their models in memory, instead "
                "of a job per stage. Default: true for chain, false for the other recipes.",
            },
            "private": {
                "enum": [True, False, "true", "false"],
                "description": "Leave the prompts out of the metadata of the videos, see docs/output.md; the JSON beside a "
                "film has them. Default: false.",
            },
            "scores": {
                "type": "array",
                "items": {"type": "string"},
                "description": f"What is measured of each film: {', '.join(NAMES)}, or names of declared models that score, "
                "see docs/scores.md; an empty list measures nothing. "
                f"Default: {', '.join(DEFAULT)}, as far as a film has parts and a reference.",
            },
            "options": {**options, "description": "Options for all clips of the run."},
        },
    }
    asked = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "mem_mb": {"type": "integer", "minimum": 1, "maximum": 10**8, "description": "Main memory in MB."},
            "runtime": MINUTES | {"description": "Run time in minutes."},
            "cores": {"type": "integer", "minimum": 1, "maximum": 10**4, "description": "Cores of the CPU."},
        },
    }
    longest = "Longest run time that jobs request, in minutes. Default: 1440, or the stage's own runtime if that is longer."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kinemake config",
        "type": "object",
        "additionalProperties": False,
        "required": ["models", "runs"],
        "properties": {
            "results": {**PLACE, "description": "Folder of the results. Default: results."},
            "store": {**PLACE, "description": "Folder that caches finished items of all runs. Default: RESULTS/store."},
            "models": {
                "type": "object",
                "propertyNames": NAME,
                "additionalProperties": model,
                "description": "Models by name: the family of each, and its path, hub or convert.",
            },
            "runs": {
                "type": "object",
                "propertyNames": {
                    **NAME,
                    "pattern": f"^(?!({'|'.join(RESERVED_RUNS)})$){NAME['pattern'][1:]}",
                    "patternErrorMessage": f"{NAME['patternErrorMessage']}; of a run it is not {', '.join(RESERVED_RUNS)}",
                },
                "additionalProperties": run,
                "description": "Runs by name. The results of a run are in RESULTS/NAME.",
            },
            "trainings": {
                "type": "object",
                "propertyNames": NAME,
                "additionalProperties": TEXT,
                "description": "Trainings: name -> file of options. `snakemake training.NAME` writes RESULTS/training/NAME, "
                "and a run whose model is in RESULTS/training/NAME/model waits for it.",
            },
            "again": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Results to make again although they are current, without the store: paths "
                "of results, names of jobs or runs, or all. On the command line: `--config 'again=[results/RUN/CLIP.mp4]'`.",
            },
            "resources": {
                "type": "object",
                "additionalProperties": False,
                "properties": {**dict.fromkeys(STAGES, asked), "max_runtime": MINUTES | {"description": longest}},
                "description": "By stage, what its jobs request from a scheduler instead of Kinemake's estimate: mem_mb, "
                "runtime, cores. Each retry adds the same memory and time, up to max_runtime minutes (1440).",
            },
            "options": {
                **options,
                "description": "Options that override all others, for the command line: --config 'options={seed: 7}'.",
            },
        },
    }


def is_left_out(name: str, value: Any) -> bool:
    """Whether a value is blank text for an option that is not text, so that it counts as absent."""
    option = option_named(name)
    return isinstance(value, str) and not value.strip() and option is not None and option.type is not str


FIXED_SCHEMA = {  # of plan.json
    "type": "object",
    "required": ["version", "seed", "shards"],
    "properties": {
        "version": {"const": PLAN_VERSION},
        "seed": {"type": "integer", "minimum": 0, "maximum": SeedOption.declared[0].maximum},
        "shards": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
    },
}


def _is_number(checker: Any, value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))
    )


@cache
def validator_class() -> Any:
    """The class of validators. The library is imported late, because the help of programs needs the options alone."""
    from jsonschema import Draft202012Validator, validators

    finite = Draft202012Validator.TYPE_CHECKER.redefine("number", _is_number)  # YAML knows .nan and .inf
    return validators.extend(Draft202012Validator, type_checker=finite)


@cache
def _validator(which: str) -> Any:
    schemas: dict[str, Callable[[], Mapping[str, Any]]] = {
        "config": config_schema,
        "clip": clip_schema,
        "fixed": lambda: FIXED_SCHEMA,
    }
    return validator_class()(schemas[which]())


FROM_TEXT = {"integer", "number", "boolean"}  # types whose values are also taken as text, from a CSV cell


def check(value: Any, which: str, where: str) -> None:
    """Raise UsageError with one sentence about the first error in `value`, or about all its unknown keys.

    `which` is "config", "clip", or "fixed" for the plan.json of a run.
    """
    errors = list(_validator(which).iter_errors(value))
    unknown = [error for error in errors if error.validator == "additionalProperties"]
    if len(unknown) > 1 and errors[0] in unknown:
        raise UsageError(
            "; ".join(_unknown_keys(error, where, value) for error in unknown), "correct them, or leave them out"
        )
    if errors:
        raise UsageError(*_sentence(errors[0], where, value))


def _sentence(error: Any, where: str, root: Any) -> tuple[str, str]:
    """(reason, remedy) of a jsonschema ValidationError in `root`; the library's stubs leave its type open."""
    place = ".".join([where, *map(str, error.absolute_path)])
    value, rule = error.instance, error.validator_value
    if error.validator in ("anyOf", "oneOf"):
        # only the alternatives with the value's type give a useful error
        others = {sub.schema_path[0] for sub in error.context if sub.validator == "type" and not sub.relative_path}
        relevant = [sub for sub in error.context if sub.schema_path[0] not in others]
        if relevant and error.validator == "anyOf":
            return _sentence(relevant[0], where, root)
        if error.validator == "oneOf":
            names = [one["required"][0] for one in rule]
            given = [name for name in names if name in value]
            keys = f"both {' and '.join(given)}" if given else f"neither {' nor '.join(names)}"
            return f"{place} has {keys}", f"it must have one of them: {' or '.join(names)}"
        types = [one["type"] for one in rule]
        if not FROM_TEXT.isdisjoint(types):
            types = [name for name in types if name != "string"]
        return f"{place} is {shown(value)}", type_remedy(types)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = [key for key in value if key not in known]
        if len(unknown) == 1:
            return f"{place} has the unknown key {shown(unknown[0])}", _hint(error, unknown[0], root) or _listed(known)
        return _unknown_keys(error, where, root), "correct them, or leave them out"
    if error.validator == "required":
        missing = next(key for key in rule if key not in value)
        description = error.schema.get("properties", {}).get(missing, {}).get("description", "")
        return f"{place} lacks the key {missing}", f"add it: {description[:1].lower()}{description[1:].rstrip('.')}"
    if "propertyNames" in error.absolute_schema_path:
        remedy = in_quotes(value) if is_scalar(value) else error.schema["patternErrorMessage"]
        return f"{place} has the key {shown(value)}", remedy
    if error.validator == "enum" and is_scalar(value) and str(value) in rule:  # YAML reads 256 as a number
        return f"{place} is the number {value}", f'write it in quotes: "{value}"'
    rules = {
        "enum": lambda: choice_remedy(rule),
        "const": lambda: f"it must be {rule}",
        "type": lambda: choice_remedy(error.schema["enum"]) if "enum" in error.schema else _type_remedy(rule, value),
        "minimum": lambda: f"it must be at least {rule}",
        "maximum": lambda: f"it must be at most {rule}",
        "minLength": lambda: "it must not be empty",
        "maxLength": lambda: f"it must have at most {rule} letters",
        "minItems": lambda: "it must not be empty",
        "pattern": lambda: error.schema.get("patternErrorMessage", f"it must match {rule}"),
    }
    return f"{place} is {shown(value)}", rules[error.validator]()


def _type_remedy(rule: str, value: Any) -> str:
    """How a value of the wrong type is written right."""
    if is_scalar(value) and rule == "string":
        return in_quotes(value)
    return f"write it as a list: [{value}]" if isinstance(value, str) and rule == "array" else type_remedy([rule])


def _unknown_keys(error: Any, where: str, root: Any) -> str:
    """What is said of the unknown keys of a table, each with what it may mean."""
    unknown = [key for key in error.instance if key not in error.schema["properties"]]
    hints = [f"{shown(key)}{f' ({hint})' if (hint := _hint(error, key, root)) else ''}" for key in unknown]
    place = ".".join([where, *map(str, error.absolute_path)])
    return f"{place} has the unknown key{'s' if len(unknown) > 1 else ''} {', '.join(hints)}"


def _listed(known: Sequence[str]) -> str:
    return f"known: {', '.join(known)}" if len(known) <= 20 else "known are those of docs/options.md"


def _hint(error: Any, key: Any, root: Any) -> str:
    """What an unknown key may mean: an older program's name, a key in the wrong place, or one that is spelled alike."""
    recipe = _recipe_at(error, root)
    if fate := fate_of(key, recipe):
        return f"it is now {fate.remark}" if fate.place else fate.remark
    if misplaced := _misplaced(error, key):
        return misplaced
    known = set(error.schema["properties"])
    of_recipe = known & option_names(recipe) if recipe else known
    return did_you_mean(key, of_recipe or known)  # a table of a run may hold no options


def _recipe_at(error: Any, root: Any) -> str:
    """The recipe of the run of a config in which an error is; "" elsewhere."""
    path = list(error.absolute_path)
    run = root["runs"][path[1]] if path[:1] == ["runs"] and len(path) > 1 else None
    recipe = run.get("recipe") if isinstance(run, Mapping) else None
    return recipe if isinstance(recipe, str) and recipe in RECIPES else ""


def _misplaced(error: Any, key: Any) -> str:
    """Where a key belongs that is at the top of the config, as `--config steps=2` puts it there; "" for any other error."""
    if error.absolute_path or "runs" not in error.schema["properties"]:
        return ""
    value = shown(error.instance[key]).strip("'")
    if option_named(key):
        return f"it is an option: write --config 'options={{{key}: {value}}}'"
    if key in error.schema["properties"]["runs"]["additionalProperties"]["properties"]:
        runs = error.instance.get("runs")
        run = next(iter(runs), "RUN") if isinstance(runs, Mapping) else "RUN"
        return f"it is a key of a run: write --config 'runs={{{run}: {{{key}: {value}}}}}'"
    return ""
