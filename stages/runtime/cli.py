"""The command line of a stage, made from its row in the table of stages and the declarations of the families."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from stages.runtime.errors import KinemakeError, UsageError, job_fault
from stages.runtime.items import Item, item_of_row, read_manifest
from stages.runtime.log import room_for_last_words
from stages.runtime.options import Family, Option
from stages.runtime.stages import Stage

FOLLOW_HELP = "Begin before the input is whole: --output is an .mp4 that grows with it, and can be watched while it does."
CLICK_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, bool: click.BOOL}


class PathType(click.Path):
    """A path on a command line; "~" is the home folder, also in --store=~/x, where no shell expands it."""

    def __init__(self, **checks: bool):
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        return super().convert(os.path.expanduser(value), parameter, context)


def clean_errors(command: Callable) -> Callable:
    """Our errors as one sentence on standard error: exit code 2 for usage, 1 for work that failed."""

    @wraps(command)
    def run(**values: Any) -> None:
        with room_for_last_words() as free_room:
            try:
                command(**values)
            except (KinemakeError, OSError) as error:
                free_room()
                reason = error if isinstance(error, KinemakeError) else job_fault(error)
                if values["debug"] or not reason:
                    raise
                click.echo(f"error: {reason}", err=True)
                sys.exit(2 if isinstance(error, UsageError) else 1)

    return run


def stage_command(stage: Stage, families: Mapping[str, Family]) -> click.Command:
    """The click command of a stage: its inputs, the options of every family that has it, and what all stages share."""
    families = {name: family for name, family in families.items() if stage.name in family.workers}

    @clean_errors
    def main(
        manifest: Path | None, output: str | None, config: Path | None = None, follow: bool = False, **values: Any
    ) -> None:
        from stages.runtime.follow import follow as growing_video
        from stages.runtime.loop import Running
        from stages.runtime.shard import run_items

        running = Running(**{field.name: values.pop(field.name) for field in fields(Running) if field.name in values})
        if manifest:
            refuse_beside_manifest({**values, "output": output, "follow": follow or None})
        items = read_manifest(manifest, stage) if manifest else _items_by_hand(stage, values, output)
        if follow:
            return growing_video(stage, families, items[0], config, running)
        run_items(stage, families, items, config, running)

    first, *others = stage.inputs
    params: list[click.Parameter] = [
        click.Argument([first.name], required=False, nargs=-1 if first.many else 1, metavar=first.name.upper())
    ]
    params += [click.Option([f"--{spec.name}"], help=f"Path: {spec.help}.") for spec in others]
    params.append(click.Option(["--output", "-o"], help="The file to make."))
    if stage.model:
        params += [
            click.Option(["--model", "-m"], help="A model's folder, Hub id, or name in the config."),
            click.Option(["--config"], type=PathType(), help="Declares models. Default: ./config.yaml."),
        ]
    params += _family_parameters(stage, families)
    if stage.follows:
        params.append(click.Option(["--follow"], is_flag=True, help=FOLLOW_HELP))
    for param in params:
        if param.name == stage.asks:
            param.multiple = True
            param.help += " Many times: an item each, with {idx} in --output."
    if stage.model:
        params += device_parameters()
    params += [
        click.Option(
            ["--manifest"],
            type=PathType(exists=True, dir_okay=False),
            help="Many items: a JSON object per line, with the names of these options.",
        ),
        click.Option(["--store"], type=PathType(), help="Folder of finished items, to reuse and to add to."),
        click.Option(
            ["--mark-failed"], is_flag=True, help="Leave a failed item's reason in its output's place, exit with 0."
        ),
        DEBUG,
    ]
    help_text = f"{stage.help}\n\n{first.name.upper()}: {first.help}."
    return click.Command(stage.name, params=params, callback=main, help=help_text, no_args_is_help=True)


def _family_parameters(stage: Stage, families: Mapping[str, Family]) -> list[click.Parameter]:
    """One parameter per option name; its help tells each family's default."""
    by_name: dict[str, list[tuple[Family, Option]]] = {}
    for family in families.values():
        for option in family.of_stage(stage.name):
            by_name.setdefault(option.name, []).append((family, option))
    params = []
    for declared in by_name.values():
        says = [f"{family.name}: {option.says()}" if len(families) > 1 else option.says() for family, option in declared]
        params.append(parameter(declared[0][1], "; ".join(says)))
    return params


def parameter(option: Option, default: str) -> click.Option:
    """A declared option on a command line; `default` in words. None means: not given."""
    flag = f"{option.flag}/--no-{option.flag[2:]}" if option.type is bool else option.flag
    return click.Option(
        [flag],
        type=click.Choice([str(c) for c in option.choices]) if option.choices else CLICK_TYPES[option.type],
        multiple=option.many,
        default=None,
        help=f"{option.help}{f' [{option.unit}]' if option.unit else ''}. Default: {default}.",
    )


def device_parameters() -> list[click.Parameter]:
    return [
        click.Option(
            ["--device"],
            default="auto",
            callback=_check_device,
            show_default=True,
            help="auto leases a free GPU, or takes the CPU where there is none; cpu; cuda:1.",
        ),
        click.Option(["--threads"], type=click.IntRange(1), help="CPU threads for torch. Default: all cores."),
    ]


DEBUG = click.Option(["--debug"], is_flag=True, help="Show a traceback instead of one sentence.")


def refuse_beside_manifest(values: Mapping[str, Any]) -> None:
    """Raise UsageError for an item's input or option on the command line: the manifest's lines have them."""
    if given := [name for name, value in values.items() if value not in (None, ())]:
        raise UsageError(f"{given[0]} is given beside --manifest", "write it into the manifest's lines")


def _check_device(context: click.Context, parameter: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is not auto, cpu, cuda or cuda:NUMBER.")
    return device


def _items_by_hand(stage: Stage, values: dict[str, Any], output: str | None) -> list[Item]:
    """The item of the command line; one for each, where an option is given many times. Raises UsageError."""
    first = stage.inputs[0]
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v not in (None, ())}
    if first.required and first.name not in given:
        raise UsageError(f"no {first.name} is given", f"{stage.name} {first.name.upper()} --output FILE, or --manifest FILE")
    if not output:
        raise UsageError("no output is given", "add --output FILE")
    if not stage.asks:
        return [item_of_row({**given, "output": output}, stage, "the command line")]
    many = given.pop(stage.asks, None) or _ask(stage, given)
    if len(many) > 1 and "{idx}" not in output:
        raise UsageError(f"output {output} is one for {len(many)} {stage.asks}s", "put {idx} into its name")
    rows = [{**given, stage.asks: one, "output": output.replace("{idx}", str(idx))} for idx, one in enumerate(many)]
    return [item_of_row(row, stage, "the command line") for row in rows] or [
        item_of_row({**given, "output": output}, stage, "the command line")
    ]


def _ask(stage: Stage, given: Mapping[str, Any]) -> list[str]:
    """What a person types at a terminal, line by line up to an empty one; nothing where another input may say it."""
    if any(spec.name in given for spec in stage.inputs[1:]) or not sys.stdin.isatty():
        return []
    answers = []
    while answer := click.prompt(f"{stage.asks} {len(answers)} (empty: that was all)", default="", show_default=False):
        answers.append(answer)
    return answers
