"""All commands of Kinemake under one name, which hides no other program."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import click

from stages.runtime.calls import snakemake_program
from stages.runtime.checkout import CHECKOUT
from stages.runtime.cli import DEBUG, PathType, clean_errors
from stages.runtime.errors import UsageError
from stages.runtime.stages import STAGES

TEMPLATE = CHECKOUT / "config" / "config.yaml"
TOOLS = {  # beside the stages
    "film": "Make films with one command.",
    "verify": "Compare a film with its provenance.",
    "sign": "Sign films, by a C2PA manifest.",
    "status": "Show how far a run is.",
    "page": "Write a page of films, to look at and to compare.",
    "store": "Show what the store holds, and clean it up.",
    "doctor": "Check what this machine has of what runs need.",
    "fetch": "Download the weights of models.",
    "convert": "Convert weights from the layouts of their authors.",
    "train": "Train models.",
    "fused": "",  # for jobs: several stages in one process
}


class Commands(click.Group):
    """The commands of this module, of the stages and of the tools. A module is imported when its command is used."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*super().list_commands(context), *STAGES, *(name for name, text in TOOLS.items() if text)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in STAGES or name in TOOLS:
            return importlib.import_module(f"stages.{name}").main
        return super().get_command(context, name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command.get_short_help_str(limit=100)) for name, command in sorted(self.commands.items())]
        stages = [(stage.name, stage.help) for stage in STAGES.values()]
        tools = [(name, text) for name, text in TOOLS.items() if text]
        for title, rows in (("Begin", own), ("Stages", stages), ("Tools", tools)):
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(cls=Commands, help=f"{__doc__}\n\nkinemake COMMAND --help describes a command.")
@click.version_option(package_name="kinemake")
def main() -> None:
    pass


@main.command(params=[click.Argument(["folder"], type=PathType(file_okay=False), default="."), DEBUG])
@clean_errors
def init(folder: Path, debug: bool) -> None:
    """Write a config.yaml with a run to edit into FOLDER, by default the working folder."""
    target = folder / "config.yaml"
    if target.exists():
        raise UsageError(f"{target} exists", "edit it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TEMPLATE, target)
    click.echo(f"{target} is written: edit its runs, then: kinemake run --cores all")


@main.command(
    params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def run(arguments: tuple[str, ...]) -> None:
    """Make the films of ./config.yaml: Snakemake, with the Snakefile of Kinemake.

    ARGUMENTS are those of snakemake: names of runs, and options such as --cores 2 or --dry-run.
    """
    if not importlib.util.find_spec("snakemake"):
        click.echo("error: the package snakemake is not installed: pip install 'kinemake[workflow]'", err=True)
        sys.exit(2)
    elsewhere = ("--configfile", "--directory", "-d")
    if not any(argument.startswith(elsewhere) for argument in arguments) and not Path("config.yaml").is_file():
        click.echo(f"error: {Path.cwd()} has no config.yaml: write one by kinemake init, or give --configfile", err=True)
        sys.exit(2)
    sys.stdout.flush()
    os.execv(sys.executable, snakemake_program(*arguments))  # so that it gets all signals itself


if __name__ == "__main__":
    main()
