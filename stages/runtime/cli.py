"""The command line of a stage, made from its row in the table of stages and the declarations of the families."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from stages.runtime import artifacts
from stages.runtime.artifacts import Failure
from stages.runtime.errors import ItemError, JobError, KinemakeError, UsageError
from stages.runtime.items import Item, item_of_row, read_manifest
from stages.runtime.model import Model, find_model
from stages.runtime.options import Family, Option, resolve
from stages.runtime.stages import Stage

CLICK_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, bool: click.BOOL}


def clean_errors(command: Callable) -> Callable:
    """Our errors as one sentence on standard error: exit code 2 for usage, 1 for work that failed."""

    @wraps(command)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, debug=debug, **kwargs)
        except KinemakeError as error:
            if debug:
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(2 if isinstance(error, UsageError) else 1)

    return run


def stage_command(stage: Stage, families: Mapping[str, Family]) -> click.Command:
    """The click command of a stage: its inputs, the options of every family that has it, and what all stages share."""
    families = {name: family for name, family in families.items() if stage.name in family.workers}

    @clean_errors
    def main(
        manifest: Path | None,
        output: str | None,
        store: Path | None,
        mark_failed: bool,
        debug: bool,
        config: Path | None = None,
        device: str = "cpu",
        threads: int | None = None,
        **values: Any,
    ) -> None:
        items = read_manifest(manifest, stage) if manifest else [_item_by_hand(stage, values, output)]
        run_items(stage, families, items, config, store, device, threads, mark_failed, debug)

    first, *others = stage.inputs
    params: list[click.Parameter] = [
        click.Argument([first.name], required=False, nargs=-1 if first.many else 1, metavar=first.name.upper())
    ]
    params += [click.Option([f"--{spec.name}"], help=f"Path: {spec.help}.") for spec in others]
    params.append(click.Option(["--output", "-o"], help="The file to make."))
    if stage.model:
        params += [
            click.Option(["--model", "-m"], help="A model's folder, Hub id, or name in the config."),
            click.Option(["--config"], type=click.Path(path_type=Path), help="Declares models. Default: ./config.yaml."),
        ]
    params += _family_parameters(stage, families)
    if stage.model:
        params += [
            click.Option(
                ["--device"],
                default="auto",
                show_default=True,
                help="auto leases a free GPU, or takes the CPU where there is none; cpu; cuda:1.",
            ),
            click.Option(["--threads"], type=click.IntRange(1), help="CPU threads for torch. Default: all cores."),
        ]
    params += [
        click.Option(
            ["--manifest"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Many items: a JSON object per line, with the names of these options.",
        ),
        click.Option(["--store"], type=click.Path(path_type=Path), help="Folder of finished items, to reuse and to add to."),
        click.Option(
            ["--mark-failed"], is_flag=True, help="Leave a failed item's reason in its output's place, exit with 0."
        ),
        click.Option(["--debug"], is_flag=True, help="Show a traceback instead of one sentence."),
    ]
    help_text = f"{stage.help}\n\n{first.name.upper()}: {first.help}."
    return click.Command(stage.name, params=params, callback=main, help=help_text, no_args_is_help=True)


def _family_parameters(stage: Stage, families: Mapping[str, Family]) -> list[click.Parameter]:
    """One parameter per option name; its help tells each family's default. None means: not given."""
    by_name: dict[str, list[tuple[Family, Option]]] = {}
    for family in families.values():
        for option in family.of_stage(stage.name):
            by_name.setdefault(option.name, []).append((family, option))
    params = []
    for declared in by_name.values():
        option = declared[0][1]
        defaults = "; ".join(
            f"{family.name}: {option.says()}" if len(families) > 1 else option.says() for family, option in declared
        )
        flag = f"{option.flag}/--no-{option.flag[2:]}" if option.type is bool else option.flag
        kind = click.Choice([str(c) for c in option.choices]) if option.choices else CLICK_TYPES[option.type]
        params.append(
            click.Option(
                [flag],
                type=kind,
                multiple=option.many,
                default=None,
                help=f"{option.help}{f' [{option.unit}]' if option.unit else ''}. Default: {defaults}.",
            )
        )
    return params


def _item_by_hand(stage: Stage, values: dict[str, Any], output: str | None) -> Item:
    first = stage.inputs[0]
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items() if v not in (None, ())}
    if first.name not in given:
        raise UsageError(f"no {first.name} is given", f"{stage.name} {first.name.upper()} --output FILE, or --manifest FILE")
    if not output:
        raise UsageError("no output is given", "add --output FILE")
    return item_of_row({**given, "output": output}, stage, "the command line")


def run_items(
    stage: Stage,
    families: Mapping[str, Family],
    items: Sequence[Item],
    config: Path | None,
    store: Path | None,
    device: str,
    threads: int | None,
    mark_failed: bool,
    debug: bool,
) -> None:
    """Run the items, a loop per model. Raises JobError when some failed and failures are not to be marked."""
    from stages.runtime.loop import Loop, Plant
    from stages.runtime.store import Store

    suffix = artifacts.KINDS[stage.writes].suffix
    batches: dict[tuple, tuple[Model | None, Family, list[Item]]] = {}
    failures = []
    for item in items:
        if not item.output.endswith(suffix):
            raise UsageError(f"output {item.output} does not end with {suffix}", f"{stage.name} writes {suffix}")
        try:
            model, family, completed = complete(stage, families, item, config)
        except ItemError as error:  # the model was to be told from an input that cannot be read
            failures.append(Failure(stage.name, item.id, error.reason, error.remedy))
            if mark_failed:
                artifacts.write_failure(Path(item.output), failures[-1])
            continue
        batches.setdefault((model and model.name, family.name), (model, family, []))[2].append(completed)
    with ExitStack() as stack:
        for model, family, batch in batches.values():
            if store is None:
                beside = Path(batch[0].output).parent
                beside.mkdir(parents=True, exist_ok=True)
                root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".kinemake-", dir=beside)))
            else:
                root = store
                Store(root).sweep()
            plant = Plant(
                stage,
                family.workers[stage.name],
                family.of_stage(stage.name),
                model,
                version=(family.name, family.version),
                weights=family.weights.get(stage.name, ()),
                needs_model=family.needs_model,
                memory_saving=family.memory_saving.get(stage.name, {}),
            )
            loop = Loop(plant, store=Store(root), device=device, threads=threads, mark_failed=mark_failed, debug=debug)
            failures += loop.run(batch).failures
    if failures and not mark_failed:
        if len(items) == 1:
            raise ItemError(failures[0].reason, failures[0].remedy)
        raise JobError(f"{len(failures)} of {len(items)} items failed, the first is {failures[0]}")


def complete(
    stage: Stage, families: Mapping[str, Family], item: Item, config: Path | None
) -> tuple[Model | None, Family, Item]:
    """The item with its model found and every option of the family resolved. Raises UsageError for an unknown option."""
    facts = _facts(stage, item)
    name = item.model or facts.get("model", "")
    model = find_model(name, config, families) if stage.model and name else None
    if model:
        family = families.get(model.family)
        if family is None:
            raise UsageError(
                f"model {model.name} is of family {model.family}", f"{stage.name} knows {', '.join(families) or 'none'}"
            )
    elif len(families) == 1:
        (family,) = families.values()
    else:
        raise UsageError("no model is given", "add --model NAME, FOLDER or HUB_ID")
    options = family.of_stage(stage.name)
    known = {option.name for option in options}
    if unknown := [key for key in item.options if key not in known]:
        raise UsageError(
            f"option {unknown[0]} is not one of {stage.name} for family {family.name}",
            f"known are {', '.join(sorted(known))}",
        )
    declared = {key: value for key, value in (model.all_options if model else {}).items() if key in known}
    values = resolve(options, {**declared, **item.options}, model.variant if model else "", known=facts)
    if model is None and stage.model and family.needs_model(stage.name, values):
        raise UsageError("no model is given", "add --model NAME, FOLDER or HUB_ID")
    return model, family, replace(item, options=values, model=model.name if model else "")


def _facts(stage: Stage, item: Item) -> dict[str, Any]:
    """Fields of the artifact that the item reads first, for defaults that depend on it, the model above all.

    Raises ItemError for one that cannot be read, where it would have to tell the model. Else the loop will say it.
    """
    spec = stage.inputs[0]
    if "file" in spec.kinds or spec.many:
        return {}
    try:
        return artifacts.read(Path(item.inputs[spec.name]), spec.kinds).fields
    except ItemError:
        if item.model:
            return {}
        raise
