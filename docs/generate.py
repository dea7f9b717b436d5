"""Writes what is made from the declared options: schemas/ and the tables of docs/. Run by `make generated`."""

import json
from pathlib import Path

from stages.plan import schema
from stages.plan.families import ALL
from stages.plan.recipes import RECIPES
from stages.runtime.artifacts import KINDS
from stages.runtime.options import Family, Option, resolve
from stages.runtime.stages import STAGES

ROOT = Path(__file__).parents[1]
LISTS = """## How lists and names are read

- Text is UTF-8, with or without byte order marks; lines end with LF, CRLF or CR, and with nothing else.
- A CSV file has commas, semicolons or tabs between its cells, and names in its first row;
  Excel's own line `sep=;` may stand before it. Rows of blank cells are skipped.
- A JSONL file has an object per line. A `null` is as if the key were absent, and so are blank texts in `id`, `video`,
  `image` and `prompt`, and blank cells of a CSV file.
- A folder gives its files with the endings above, in any case, but no hidden ones. Other videos and pictures in it are named
  in a warning.
- An `id` that looks like a number, a date or a truth value needs quotes in YAML: `id: "007"`.
- `~` at the beginning of a path is the home folder. A size is `1280*704` or `1280x704`.
- A name template has plain fields, `{clip}`, and for numbers a width, `{link:02d}`.
- A list that cannot be read, a clip with a wrong option, or a model's folder with a wrong `kinemake.json` stops its own run;
  the other runs go on, and Snakemake ends with an error. A config that breaks the rules of this page stops all runs.
- Snakemake reads a file of `--configfile` before Kinemake does: one that is not YAML, not UTF-8, or contains itself ends in
  an error of Snakemake's own. `doctor --config FILE` says in a sentence what is wrong with it.
"""
RECORDS = """## What a result was made of

A run leaves a record beside each result, `.NAME.made`, in JSON:

| field | meaning |
|---|---|
| `fingerprint` | of the work: stages, their versions, models and options, of the item and of all those before it |
| `sources` | the users' files that it was made of, and their SHA-256, in the order in which they are read |
| `files` | the result's own files: size, time and SHA-256 of each |

A plan makes what has no such record, or another fingerprint, or sources or files of another content. It makes nothing else.
Results that are moved or copied take the records along. A stage by hand writes none.
"""


def options_page() -> str:
    """Every option of every recipe and family: what it does, who takes it, its default."""
    parts = ["# Options\n", "Made by `make generated` from the declarations in the code.\n"]
    parts.append(
        "Each goes into `options` of a run or a model in the config, into a clip's row, or onto the command line of its "
        "stage (`--guidance-scale` for `guidance_scale`). Options in *italics* do not change the result. A dagger (†) marks "
        "what the recipe sets itself: such an option is for stages that are run by hand.\n"
    )
    for name, recipe in RECIPES.items():
        parts.append(f"## Recipe `{name}`\n\n{_table(recipe.OPTIONS)}")
        if recipe.DEFAULTS:
            changed = ", ".join(f"`{key}` = `{value}`" for key, value in recipe.DEFAULTS.items())
            parts.append(f"Other defaults than below: {changed}.\n")
    for name, family in ALL.items():
        parts.append(f"## Family `{name}`\n\n{_table(family.options)}")
        if family.variants:
            parts.append(f"### Defaults of `{name}` by variant, at the default size\n\n{_variants(family)}")
    parts.append("## Trainings\n\nOptions of `train NAME`, on its command line or in its file (`--config`).\n")
    for family in ALL.values():
        for name, training in family.trainings.items():
            parts.append(f"### `train {name}`\n\n{training.help}\n\n{_table(training.options)}")
    return "\n".join(parts)


def _table(options: tuple[Option, ...]) -> str:
    lines = ["| option | stage | default | what it does |", "|---|---|---|---|"]
    for option in options:
        name = f"`{option.name}`" if option.changes_result else f"*`{option.name}`*"
        name += "†" if option.by_recipe else ""
        choices = f" ({', '.join(map(str, option.choices))})" if option.choices else ""
        if option.maximum is not None:
            choices = f" ({option.minimum} to {option.maximum})"
        unit = f" [{option.unit}]" if option.unit else ""
        lines.append(f"| {name} | {', '.join(option.stages) or 'plan'} | {option.says()} | {option.help}{choices}{unit} |")
    return "\n".join(lines) + "\n"


def _variants(family: Family) -> str:
    """The values that the defaults come to; texts that would fill the table are left to the table above."""
    values = [resolve(family.options, {}, variant) for variant in family.variants]
    lines = [f"| option | {' | '.join(family.variants)} |", "|---" * (len(values) + 1) + "|"]
    for option in family.options:
        found = [found[option.name] for found in values]
        if isinstance(found[0], str) and len(found[0]) > 40 or "drawn" in option.default_text:
            found = [option.says()] * len(found)
        lines.append(f"| `{option.name}` | {' | '.join('none' if v in (None, '') else str(v) for v in found)} |")
    return "\n".join(lines) + "\n"


def artifacts_page() -> str:
    """Every kind of file between the stages."""
    parts = ["# Artifacts\n", "Made by `make generated` from `stages/runtime/artifacts.py`.\n"]
    for kind in KINDS.values():
        by = next(stage.name for stage in STAGES.values() if stage.writes == kind.name)
        parts.append(f"## `{kind.name}` ({kind.suffix}), by `{by}`\n\n{kind.help}\n")
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
    clip = {name: spec for name, spec in schema.clip_schema()["properties"].items() if name not in schema.all_options()}
    clip["prompt"] = schema.clip_schema()["properties"]["prompt"]
    tables = [
        ("config.yaml", config),
        ("A model", model["properties"]),
        ("A run", run["properties"]),
        ("Clips from a folder", folder["properties"]),
        ("A clip: a row of a list, of a JSONL or of a CSV file; options of its own may stand beside these", clip),
    ]
    parts = [
        "# The config\n",
        "Made by `make generated` from the schema. An unknown key is an error. Options: [options.md](options.md).\n",
        "Precedence: command line (`--config 'options={steps: 20}'`) > clip > run > model > recipe > default. What a "
        "model's entry leaves out is taken from `kinemake.json` in its folder, if there is one: [models.md](models.md).\n",
    ]
    for title, properties in tables:
        rows = "".join(f"| `{name}` | {spec['description']} |\n" for name, spec in properties.items())
        parts.append(f"## {title}\n\n| key | meaning |\n|---|---|\n{rows}")
    parts.append(LISTS)
    return "\n".join(parts)


def files() -> dict[str, str]:
    """Path below the project -> text."""
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
