"""Write the files that follow from the declared options: schemas/ and the tables of docs/. Run by `make generated`."""

import json
from collections.abc import Mapping
from pathlib import Path

from stages.plan import schema
from stages.plan.families import ALL_FAMILIES
from stages.plan.recipes import RECIPES
from stages.runtime.artifacts import KINDS
from stages.runtime.options import Family, Options, resolve
from stages.runtime.stages import STAGES

ROOT = Path(__file__).parents[1]
LISTS = """## How lists and names are read

- Text is UTF-8, with or without byte order marks. Lines end with LF, CRLF or CR, and with nothing else.
- A CSV file has commas, semicolons or tabs between its cells, and names in its first row. Excel's own line `sep=;` may come
  before that row. Rows of blank cells are skipped.
- A JSONL file has one object per line. A `null` counts as a missing key. So do blank texts in `id`, `video`, `image` and
  `prompt`, and blank cells of a CSV file.
- Of a folder, the files with the endings above are read, in upper or lower case, without hidden files. A warning names other
  videos and images in it.
- An `id` that looks like a number, a date or a truth value needs quotes in YAML: `id: "007"`.
- `~` at the beginning of a path is the home folder. A size is `1280*704` or `1280x704`.
- A name template has plain fields, `{clip}`. Numbers may have a width, `{link:02d}`.
- A run stops if its list cannot be read, one of its clips has a wrong option, or its model's folder has a wrong
  `kinemake.json`. The other runs go on, and Snakemake ends with an error. A config that breaks the rules of this page stops
  all runs.
- Snakemake reads a file of `--configfile` before Kinemake does. It fails with an error of its own if the file is not YAML,
  is not UTF-8 or contains itself. `doctor --config FILE` explains in one sentence what is wrong with such a file.
"""
RECORDS = """## How a result was made

Every file has its `provenance`: a record for its own item and for each item before it, in the order of the work.

| field | meaning |
|---|---|
| `stage`, `key` | the stage, and the item's key in the store |
| `stage_version`, `family`, `family_version` | version of the stage, and the model family with its version; in the key |
| `files`, `inputs`, `input_keys` | paths and digests of what the item read, and the keys of the items that made it |
| `model`, `weights` | the model's name, source and revision, and the digest of the weights that the stage read |
| `options`, `option_files` | every option of the stage, and the digests of the files that they name |
| `device` | the GPU or the processor that did the work |
| `seconds`, `peak_memory_bytes`, `memory_saving` | what the work took, and whether by the memory-saving options |
| `program` | the digest of an entry of `programs`, which has each program once |

An entry of `programs` has the versions of Kinemake, Python and the libraries, the commit, and the container image with its
SHA-256. In a `.safetensors` file both are JSON in the metadata of the header. Older files, whose records have their programs
in them, are read as before.

## The record of what a result was made of

A run writes a record beside each result, `.NAME.record`, in JSON:

| field | meaning |
|---|---|
| `fingerprint` | of the work: stages with their versions, models and options, of the item and of all items before it |
| `sources` | the users' files that the result depends on, with their SHA-256, in the order in which they are read |
| `weights` | the models, the stages that loaded them, and the digests of the files that were read |
| `files` | the result's own files: size, time and SHA-256 of each |

A plan makes a result again if it has no record, if the fingerprint is another one, or if the content of its sources or of
its own files has changed. It makes nothing else. A stage of a run takes an input only if its record has the fingerprint that
the plan expects: the `lineage` in the item's line of the manifest. Move or copy results together with their records. A stage
by hand writes no record.
"""


def options_page() -> str:
    """Every option of every recipe and family: its stages, its default, and what it does."""
    parts = ["# Options\n", "`make generated` writes this page from the declarations in the code.\n"]
    parts.append(
        "An option may be set in `options` of a run or a model in the config, in a clip's row, or on the command line of "
        "its stage (`--guidance-scale` for `guidance_scale`). An option in *italics* does not change the result. An option "
        "with a dagger (†) is set by the recipe: set it only for a stage that you run by hand.\n"
    )
    for name, recipe in RECIPES.items():
        parts.append(f"## Recipe `{name}`\n\n{_table({'plan': recipe.OPTIONS})}")
        if recipe.DEFAULTS:
            changed = ", ".join(f"`{key}` = `{value}`" for key, value in recipe.DEFAULTS.items())
            parts.append(f"Defaults that differ from those below: {changed}.\n")
    for name, family in ALL_FAMILIES.items():
        if not family.stages:
            continue
        parts.append(f"## Family `{name}`\n\n{_table({name: one.options for name, one in family.stages.items()})}")
        if family.variants:
            parts.append(f"### Defaults of `{name}` by variant, at the default size\n\n{_variants(family)}")
    parts.append("## Trainings\n\nOptions of `train NAME`, on its command line or in its file (`--config`).\n")
    for family in ALL_FAMILIES.values():
        for name, training in family.trainings.items():
            parts.append(f"### `train {name}`\n\n{training.help}\n\n{_table({'train': training.options})}")
    return "\n".join(parts)


def _table(stages: Mapping[str, type[Options]]) -> str:
    """The options of stages, each once."""
    lines = ["| option | stage | default | what it does |", "|---|---|---|---|"]
    places: dict[str, list[str]] = {}
    for stage, options in stages.items():
        for option in options.declared:
            places.setdefault(option.name, []).append(stage)
    declared = {option.name: option for options in stages.values() for option in options.declared}
    for option in declared.values():
        name = f"`{option.name}`" if option.changes_result else f"*`{option.name}`*"
        name += "".join(f", `{alias}`" for alias in option.aliases)
        name += "†" if option.set_by_recipe else ""
        choices = f" ({', '.join(map(str, option.choices))})" if option.choices else ""
        if option.maximum is not None:
            choices = f" ({option.minimum} to {option.maximum})"
        unit = f" [{option.unit}]" if option.unit else ""
        default = option.describe_default()
        lines.append(f"| {name} | {', '.join(places[option.name])} | {default} | {option.help}{choices}{unit} |")
    return "\n".join(lines) + "\n"


def _variants(family: Family) -> str:
    """The value of each default by variant. A long text has its description from the table of options instead."""
    values = [resolve(family.options, {}, variant) for variant in family.variants]
    lines = [f"| option | {' | '.join(family.variants)} |", "|---" * (len(values) + 1) + "|"]
    for option in family.options:
        column = [resolved[option.name] for resolved in values]
        if (isinstance(column[0], str) and len(column[0]) > 40) or "drawn" in option.default_text:
            column = [option.describe_default()] * len(column)
        lines.append(f"| `{option.name}` | {' | '.join('none' if v in (None, '') else str(v) for v in column)} |")
    return "\n".join(lines) + "\n"


def artifacts_page() -> str:
    """Every kind of file between the stages."""
    parts = ["# Artifacts\n", "`make generated` writes this page from `stages/runtime/kinds.py`.\n"]
    for kind in KINDS.values():
        writer = next(stage.name for stage in STAGES.values() if kind.name in stage.writes)
        parts.append(f"## `{kind.name}` ({kind.suffix}), by `{writer}`\n\n{kind.help}\n")
        rows = "".join(
            f"| `{name}`{'' if field.required else ' (optional)'} | {field.help} |\n" for name, field in kind.fields.items()
        )
        parts.append(f"| field | meaning |\n|---|---|\n{rows}")
        if kind.tensors:
            rows = "".join(
                f"| `{t.name}`{'' if t.required else ' (optional)'} | ({', '.join(str(s) or '·' for s in t.shape)}) "
                f"| {' '.join(t.dtypes)} | {t.help} |\n"
                for t in kind.tensors
            )
            parts.append(f"| tensor | shape | dtype | meaning |\n|---|---|---|---|\n{rows}")
        if kind.members:
            rows = "".join(f"| `NAME{suffix}` | {help_text} |\n" for suffix, help_text in kind.members.items())
            parts.append(f"| member | holds |\n|---|---|\n{rows}")
    parts.append(RECORDS)
    return "\n".join(parts)


def config_page() -> str:
    """Every key of config.yaml and of a clip."""
    config = schema.config_schema()["properties"]
    run, model = config["runs"]["additionalProperties"], config["models"]["additionalProperties"]
    folder = next(form for form in run["properties"]["clips"]["anyOf"] if form.get("type") == "object")
    clip = {name: spec for name, spec in schema.clip_schema()["properties"].items() if not schema.option_named(name)}
    clip["prompt"] = schema.clip_schema()["properties"]["prompt"]
    tables = [
        ("config.yaml", config),
        ("A model", model["properties"]),
        ("A run", run["properties"]),
        ("Clips from a folder", folder["properties"]),
        ("A clip: an entry of a list, or a row of a JSONL or CSV file; it may also have options", clip),
    ]
    parts = [
        "# The config\n",
        "`make generated` writes this page from the schema. An unknown key is an error. [options.md](options.md) lists the "
        "options.\n",
        "Precedence: command line (`--config 'options={seed: 7}'`) > clip > run > model > recipe > default. What "
        "a model's entry does not state is read from `kinemake.json` in its folder, if there is one: "
        "[models.md](models.md).\n",
    ]
    for title, properties in tables:
        rows = "".join(f"| `{name}` | {spec['description']} |\n" for name, spec in properties.items())
        parts.append(f"## {title}\n\n| key | meaning |\n|---|---|\n{rows}")
    parts.append(LISTS)
    return "\n".join(parts)


def files() -> dict[str, str]:
    """The text of each generated file, by its path below the project."""
    return {
        "schemas/config.schema.json": json.dumps(schema.config_schema(), indent=2, ensure_ascii=False) + "\n",
        "schemas/clip.schema.json": json.dumps(schema.clip_schema(), indent=2, ensure_ascii=False) + "\n",
        "docs/options.md": options_page(),
        "docs/artifacts.md": artifacts_page(),
        "docs/config.md": config_page(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        (ROOT / path).write_text(text, encoding="utf-8")
