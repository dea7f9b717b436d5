"""What the config may say: JSON schemas made from the declared options, and errors that name the key and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from stages.models import FAMILIES
from stages.plan.families import ALL
from stages.plan.recipes import RECIPES
from stages.plan.resolve import PROMPT
from stages.runtime.errors import UsageError
from stages.runtime.model import HUB_ID
from stages.runtime.options import DTYPES, Option
from stages.runtime.stages import STAGES

TEXT = {"type": "string", "minLength": 1}


@cache
def all_options() -> dict[str, Option]:
    """Every option that a run may set, by name; what two families call by one name has one description, and the default
    of each."""
    declared = [(name, option) for name, family in ALL.items() for option in family.options]
    declared += [("", PROMPT), *((name, option) for name, recipe in RECIPES.items() for option in recipe.OPTIONS)]
    options: dict[str, Option] = {}
    defaults: dict[str, dict[str, str]] = {}
    for owner, option in reversed(declared):
        if not option.by_recipe:
            options[option.name] = option
            defaults.setdefault(option.name, {})[owner] = option.says()
    for name, said in defaults.items():
        if len(set(said.values())) > 1:
            words = "; ".join(f"{owner}: {default}" for owner, default in reversed(said.items()))
            options[name] = replace(options[name], default_text=words)
    return options


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
    options = {name: _option_schema(option) for name, option in all_options().items() if name not in own}
    return {"type": "object", "additionalProperties": False, "required": ["id"], "properties": {**own, **options}}


@cache
def config_schema() -> dict[str, Any]:
    options = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _option_schema(option) for name, option in all_options().items()},
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
            "hub": {"type": "string", "pattern": HUB_ID, "description": "Id on the model hub, instead of path."},
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
            "videos": {**TEXT, "description": "Folder of videos: .mp4 .avi .mov .mkv."},
            "images": {**TEXT, "description": "Or a folder of pictures: .png .jpg .jpeg .bmp .tiff .tif."},
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
            "mem_mb": {"type": "integer", "minimum": 1, "description": "Main memory in MB."},
            "runtime": {"type": "integer", "minimum": 1, "description": "Minutes."},
        },
    }
    name = {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Kinemake config",
        "type": "object",
        "additionalProperties": False,
        "required": ["models", "runs"],
        "properties": {
            "results": {**TEXT, "description": "Folder of the results. Default: results."},
            "store": {**TEXT, "description": "Folder of finished items that all runs share. Default: RESULTS/store."},
            "models": {
                "type": "object",
                "propertyNames": name,
                "additionalProperties": model,
                "description": "Models by name.",
            },
            "runs": {
                "type": "object",
                "propertyNames": {**name, "not": {"enum": ["store", "all", "training", "weights"]}},
                "additionalProperties": run,
                "description": "What to make, by name; the results are in RESULTS/NAME.",
            },
            "trainings": {
                "type": "object",
                "propertyNames": name,
                "additionalProperties": TEXT,
                "description": "Trainings: name -> file of options. `snakemake training.NAME` fills RESULTS/training/NAME.",
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


def _option_schema(option: Option) -> dict[str, Any]:
    """Text is allowed for numbers and truth values too, because CSV cells and command lines are text."""
    schema = option.schema()
    if schema.get("type") in ("integer", "number", "boolean"):
        description = schema.pop("description")
        return {"anyOf": [schema, {"type": "string"}], "description": description}
    return schema


@cache
def _validator(which: str) -> Draft202012Validator:
    return Draft202012Validator({"config": config_schema, "clip": clip_schema}[which]())


def check(value: Any, which: str, where: str) -> None:
    """Raise UsageError with one sentence about the first thing that `value` has wrong. `which`: "config" or "clip"."""
    for error in _validator(which).iter_errors(value):
        raise UsageError(*_sentence(error, where))


def _sentence(error, where: str) -> tuple[str, str]:
    """What is wrong, and the remedy."""
    place = ".".join([where, *map(str, error.absolute_path)])
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        near = difflib.get_close_matches(str(unknown), known, 1)
        return (
            f"{place} has the unknown key {unknown!r}",
            f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}",
        )
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{place} lacks the key {missing}", _remedy(error.schema.get("properties", {}).get(missing, {}))
    if error.validator == "oneOf":
        return f"{place} must have either path or hub", "path is a folder on this machine, hub an id on the model hub"
    if error.validator == "enum":
        if str(error.instance) in error.validator_value:  # YAML takes 256 for a number
            return f"{place} is the number {error.instance}", f'write it in quotes: "{error.instance}"'
        return f"{place} is {error.instance!r}", f"it must be one of {', '.join(map(str, error.validator_value))}"
    return f"{place} is {error.instance!r}", _remedy(error.schema) or error.message


def _remedy(schema: Mapping[str, Any]) -> str:
    return schema.get("description", "").rstrip(".")
