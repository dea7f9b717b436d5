"""Convert published checkpoints into repositories that the stages load. Each conversion of a family is a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import yaml

from stages.families import FAMILIES
from stages.runtime.cli import DEBUG, PathType, clean_errors, parameter
from stages.runtime.errors import UsageError, choice_remedy
from stages.runtime.options import Conversion


def command(name: str, conversion: Conversion) -> click.Command:
    @clean_errors
    def run(output: Path, debug: bool, **given: Any) -> None:
        from stages.runtime.conversion import convert

        values = {key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None}
        convert(conversion, conversion.options.resolved(values).values(), output)

    params: list[click.Parameter] = [
        *map(parameter, conversion.options.declared),
        click.Option(["--output", "-o"], required=True, type=PathType(), help="Folder to create; it must not exist."),
        DEBUG,
    ]
    return click.Command(name, params=params, callback=run, help=conversion.help, no_args_is_help=True)


HELP = """Convert published checkpoints into repositories that the stages load: safetensors in diffusers' layout.

A file or folder is a path, or is on the model hub: hub://OWNER/NAME/FILE, hub://OWNER/NAME or hub://OWNER/NAME@REVISION."""


@click.group(help=HELP)
def main() -> None:
    pass


@main.command("config", no_args_is_help=True)
@click.argument("old", type=PathType(exists=True, dir_okay=False))
@click.option("--recipe", required=True, help="Recipe that replaces the older program, such as fresco.")
@click.option("--output", "-o", required=True, type=PathType(), help="The config to write; it must not exist.")
@clean_errors
def convert_config(old: Path, recipe: str, output: Path, debug: bool) -> None:
    """Write the config file OLD of an older program as a config with one run. What is not used is listed."""
    from stages.plan.older import read_old_config
    from stages.plan.recipes import RECIPES, options_of_recipe
    from stages.runtime.options import rename_aliases

    if recipe not in RECIPES:
        raise UsageError(f"recipe is {recipe!r}", choice_remedy(RECIPES))
    if os.path.lexists(output):
        raise UsageError(f"{output} exists", "choose another --output")
    run, results, remarks = read_old_config(old, recipe)
    declared = [option for options in options_of_recipe(recipe).values() for option in options]
    run["options"] = rename_aliases(declared, run["options"])
    config = {**({"results": results} if results else {}), "runs": {recipe: run}}
    output.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    for remark in remarks:
        click.echo(f"note: {remark}", err=True)


convert_config.params.append(DEBUG)

for family in FAMILIES.values():
    if family.conversion:
        main.add_command(command(family.name, family.conversion))


if __name__ == "__main__":
    main()
