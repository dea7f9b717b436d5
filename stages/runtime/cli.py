"""The command line of a stage, built from the stage table and the options that the families declare."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from stages.runtime.ask import ask_model_and_prompts
from stages.runtime.code import check_code
from stages.runtime.errors import KinemakeError, UsageError
from stages.runtime.faults import job_fault
from stages.runtime.hub import is_source
from stages.runtime.items import Item, item_of_row, read_manifest, refuse_double_outputs
from stages.runtime.log import reserve_log_space
from stages.runtime.options import REQUIRED, Family, Option, merged
from stages.runtime.stages import PROMPT, Stage

FOLLOW_HELP = (
    "Begin before the input is complete: --output is an .mp4 that grows with the input and can be played meanwhile."
)
CLICK_TYPES: dict[type, click.ParamType] = {int: click.INT, float: click.FLOAT, str: click.STRING, bool: click.BOOL}


class PathType(click.Path):
    """A path on the command line. "~" is expanded, also in --store=~/x, where the shell leaves it as it is."""

    def __init__(self, **checks: bool):
        super().__init__(path_type=Path, **checks)

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Path:
        return Path(os.fsdecode(super().convert(os.path.expanduser(value), parameter, context)))


class SourceType(PathType):
    """A path, or an address on the model hub, which stays text."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return value if is_source(value) else super().convert(value, parameter, context)


class ChoiceType(click.Choice):
    """A choice that the help shows as it is written in configs, block_level; the command line takes block-level too."""

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(self.choices)}]"


def clean_errors(command: Callable) -> Callable:
    """Print our errors as one sentence on standard error. The exit code is 2 for wrong usage and 1 for failed work."""

    @wraps(command)
    def run(**values: Any) -> None:
        with reserve_log_space() as free_space:
            try:
                check_code()
                command(**values)
            except (KinemakeError, OSError) as error:
                free_space()
                reason = error if isinstance(error, KinemakeError) else job_fault(error)
                if values["debug"] or not reason:
                    raise
                click.echo(f"error: {reason}", err=True)
                sys.exit(2 if isinstance(error, UsageError) else 1)

    return run


def stage_command(stage: Stage, families: Mapping[str, Family]) -> click.Command:
    """The click command of a stage.

    Its parameters are the stage's inputs, the options of each family that implements it, and those that all stages share.
    """
    families = {name: family for name, family in families.items() if stage.name in family.stages}
    options = {name: family.options_of(stage.name) for name, family in families.items()}

    @clean_errors
    def main(
        manifest: Path | None, output: str | None, config: Path | None = None, follow: bool = False, **values: Any
    ) -> None:
        from stages.runtime.follow import follow as growing_video
        from stages.runtime.loop import Settings
        from stages.runtime.shard import run_items

        settings = Settings(**{field.name: values.pop(field.name) for field in fields(Settings) if field.name in values})
        if manifest:
            refuse_beside_manifest({**values, "output": output, "follow": follow or None})
            items = read_manifest(manifest, stage)
        else:
            items = _items_by_hand(stage, values, output, config, families)
        if follow:
            if len(items) > 1:
                raise UsageError(f"--follow is given with {len(items)} inputs", "follow one at a time")
            return growing_video(stage, families, items[0], config, settings)
        run_items(stage, families, items, config, settings)

    first, *others = stage.inputs
    several = first.many or first.name == stage.repeatable
    params: list[click.Parameter] = [
        click.Argument([first.name], required=False, nargs=-1 if several else 1, metavar=first.name.upper())
    ]
    for spec in others:
        text = f"Path: {spec.help}." + (" May be repeated." if spec.many else "")
        params.append(click.Option([f"--{spec.name}"], help=text, multiple=spec.many))
    params.append(click.Option(["--output", "-o"], help="The file to make."))
    if stage.model:
        params += [
            click.Option(["--model", "-m"], help="A model's folder, Hub id, or name in the config."),
            click.Option(["--config"], type=PathType(), help="Declares models. Default: ./config.yaml."),
        ]
    params += merged_parameters(options.values())
    if stage.follows:
        params.append(click.Option(["--follow"], is_flag=True, help=FOLLOW_HELP))
    for param in params:
        if isinstance(param, click.Option) and param.name == stage.repeatable:
            param.multiple = True
            param.help = f"{param.help} May be repeated: one item per value, with {{idx}} in --output."
    if stage.model:
        params += device_parameters()
    params += [
        click.Option(
            ["--manifest"],
            type=PathType(exists=True, dir_okay=False),
            help="File of items: one JSON object per line, with the names of these options.",
        ),
        click.Option(["--store"], type=PathType(), help="Folder that caches finished items for reuse."),
        click.Option(
            ["--mark-failed"],
            is_flag=True,
            help="Write the reason of a failed item in the place of its output, and exit with 0.",
        ),
        DEBUG,
    ]
    help_text = f"{stage.help}\n\n{first.name.upper()}: {first.help}."
    if first.name == stage.repeatable:
        help_text += " May be repeated: one item per file, with {stem} or {idx} in --output."
    sections = {
        f"Options of family {name}" if len(options) > 1 else "Options of the work": options[name] for name in options
    }
    return StageCommand(stage.name, params=params, callback=main, help=help_text, no_args_is_help=True, sections=sections)


OLD_SPELLING = {"token_normalize_func": lambda token: token.replace("_", "-")}  # --data_dir is --data-dir


class StageCommand(click.Command):
    """A command whose help lists declared options in sections, such as one per family, by their titles."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[Option]], **kwargs: Any):
        super().__init__(*args, **{"context_settings": OLD_SPELLING, **kwargs})
        self.sections = sections

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        declared = {option.name for options in self.sections.values() for option in options}
        own = [
            param.get_help_record(context)
            for param in self.get_params(context)
            if isinstance(param, click.Option) and param.name not in declared
        ]
        sections = {"Options": own} if own else {}
        for title, options in self.sections.items():
            sections[title] = [parameter(option).get_help_record(context) for option in options]
        for title, records in sections.items():
            if shown := [record for record in records if record]:
                with formatter.section(title):
                    formatter.write_dl(shown)


def parameter(option: Option) -> click.Option:
    """A declared option as a click option, with all its aliases. The value None means that it was not given."""
    flags = [option.flag, *(f"--{alias.replace('_', '-')}" for alias in option.aliases)]
    required = option.default is REQUIRED
    return click.Option(
        [option.name, *(f"{flag}/--no-{flag[2:]}" if option.type is bool else flag for flag in flags)],
        type=click_type(option),
        multiple=option.many,
        default=None,
        required=required,
        help=f"{option.help}{f' [{option.unit}]' if option.unit else ''}."
        + ("" if required else f" Default: {option.describe_default().removesuffix('.')}."),
    )


def click_type(option: Option) -> click.ParamType:
    if option.choices:
        return ChoiceType([str(choice) for choice in option.choices])
    if option.exists:
        return SourceType(exists=True, dir_okay=option.exists == "folder", file_okay=option.exists == "file")
    return CLICK_TYPES[option.type]


def merged_parameters(families: Iterable[Sequence[Option]]) -> list[click.Option]:
    """One parameter per option name. It accepts every value that any of the families accepts.

    The family is known only after the model is found; its own declaration checks the value then.
    """
    by_name: dict[str, list[Option]] = {}
    for options in families:
        for option in options:
            by_name.setdefault(option.name, []).append(option)
    return [parameter(merged(options)) for options in by_name.values()]


def device_parameters() -> list[click.Parameter]:
    return [
        click.Option(
            ["--device"],
            default="auto",
            callback=_check_device,
            show_default=True,
            help="auto (lease a free GPU; without any GPU, use the CPU), cpu, or a GPU such as cuda:1.",
        ),
        click.Option(["--threads"], type=click.IntRange(1), help="CPU threads for torch. Default: all cores."),
    ]


DEBUG = click.Option(["--debug"], is_flag=True, help="Show a traceback instead of one sentence.")


def refuse_beside_manifest(values: Mapping[str, Any]) -> None:
    """Raise UsageError for an input or option of an item beside --manifest: the lines of the manifest contain them."""
    if given := [name for name, value in values.items() if value not in (None, ())]:
        raise UsageError(f"{given[0]} is given beside --manifest", "write it into the manifest's lines")


def _check_device(context: click.Context, parameter: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise click.BadParameter(f"{device!r} is not auto, cpu, cuda or cuda:NUMBER.")
    return device


def _items_by_hand(
    stage: Stage, values: dict[str, Any], output: str | None, config: Path | None, families: Mapping[str, Family]
) -> list[Item]:
    """The items of a command line: one per value of what may be repeated, else one. Raises UsageError."""
    first, repeated = stage.inputs[0], stage.repeatable
    given: dict[str, Any] = {
        name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v not in (None, ())
    }
    if first.required and first.name not in given:
        raise UsageError(f"no {first.name} is given", f"{stage.name} {first.name.upper()} --output FILE, or --manifest FILE")
    if not output:
        raise UsageError("no output is given", "add --output FILE")
    if repeated == PROMPT and PROMPT not in given and _may_ask(stage, given):
        given["model"], given[PROMPT] = ask_model_and_prompts(config, families, given.get("model", ""))
    if not (many := given.pop(repeated, None)):
        return [item_of_row({**given, "output": output}, stage, "the command line")]
    fields = ("{idx}",) if repeated == PROMPT else ("{idx}", "{stem}")
    if len(many) > 1 and not any(field in output for field in fields):
        what = "prompts" if repeated == PROMPT else "inputs"
        raise UsageError(f"output {output} is one for {len(many)} {what}", f"put {' or '.join(fields)} into its name")
    items = []
    for idx, one in enumerate(many):
        name = output.replace("{idx}", str(idx))
        if repeated != PROMPT:
            name = name.replace("{stem}", Path(one).stem)
        items.append(item_of_row({**given, repeated: one, "output": name}, stage, "the command line"))
    refuse_double_outputs(items, "the command line")
    return items


def _may_ask(stage: Stage, given: Mapping[str, Any]) -> bool:
    """Whether the prompts can be asked for: standard input is a terminal, and no other input may contain one."""
    return sys.stdin.isatty() and not any(spec.name in given for spec in stage.inputs[1:])
