"""Train a model. Each training of a family is a command."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from stages.families import FAMILIES
from stages.runtime.calls import command_line
from stages.runtime.cli import DEBUG, OLD_SPELLING, PathType, clean_errors, device_parameters, parameter
from stages.runtime.errors import KinemakeError, UsageError, one_line
from stages.runtime.options import Training
from stages.runtime.text import read_yaml


def command(name: str, training: Training) -> click.Command:
    @clean_errors
    def run(config: Path | None, output: Path, device: str, threads: int | None, debug: bool, **given: Any) -> None:
        values, architecture = read_config(config, name, training) if config else ({}, {})
        values |= {key: value for key, value in given.items() if value not in (None, ())}
        options = training.options.resolved(values)
        start(training, options, architecture, output, device, threads)

    params: list[click.Parameter] = [
        click.Option(
            ["--config"],
            type=PathType(exists=True, dir_okay=False),
            help="YAML file with these options and the architecture of a new model. The command line has precedence.",
        ),
        click.Option(["--output", "-o"], required=True, type=PathType(), help="Output folder of the training."),
        *map(parameter, training.options.declared),
        *device_parameters(),
        DEBUG,
    ]
    text = f"{training.help}\n\nThe model is written to OUTPUT/model. The same command resumes a stopped training."
    return click.Command(name, params=params, callback=run, help=text, no_args_is_help=True, context_settings=OLD_SPELLING)


def read_config(path: Path, name: str, training: Training) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The options and the architecture in a training's file. Raises UsageError for anything else."""
    values = read_yaml(path)
    if values is None:
        values = {}
    if not isinstance(values, dict) or not isinstance(values.get("architecture", {}), dict):
        raise UsageError(f"the config {path} is no table of names and values", "write lines such as batch_size: 4")
    known = {"training", "architecture", *(option.name for option in training.options.declared)}
    if unknown := [key for key in values if key not in known]:
        raise UsageError(f"{path} has the unknown key {unknown[0]!r}", f"known are {', '.join(sorted(known))}")
    if (declared := values.pop("training", name)) != name:
        line = command_line("train", declared, "--config", str(path))
        raise UsageError(f"{path} is for train {declared}", f"run {line}")
    return values, values.pop("architecture", {})


def start(
    training: Training,
    options: Any,
    architecture: Mapping[str, Any],
    output: Path,
    device: str,
    threads: int | None,
) -> None:
    from stages.runtime.device import take_device

    launched = "LOCAL_RANK" in os.environ  # by accelerate, which assigns the devices itself
    device = "" if launched else take_device(device, threads)
    import torch

    if device.startswith("cuda:"):
        torch.cuda.set_device(device)

    from stages.families.shared.loading import quiet

    quiet()
    from stages.families.shared.training.loop import train
    from stages.runtime.worker import import_class

    torch.manual_seed(options.seed)
    task = import_class(training.task)
    with building(options):
        built = task(options, architecture)
    train(built, options, output, cpu=device == "cpu")


@contextmanager
def building(options: Any) -> Iterator[None]:
    """Turn errors of the libraries about a wrong architecture or wrong files in `start_from` into a UsageError."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # libraries raise any class for a folder without a model
        message = error.reason if isinstance(error, KinemakeError) else one_line(error)
        reason = f"{message} is missing" if isinstance(error, KeyError) else message
        if options.start_from:
            remedy = "give a folder with a whole model, and the architecture that goes with it"
            raise UsageError(f"the training cannot start from {options.start_from} ({reason})", remedy) from error
        remedy = "give --config, and compare it with those in examples/training"
        raise UsageError(f"the architecture makes no model ({reason})", remedy) from error


@click.group(help="Train a model on clips with captions.")
def main() -> None:
    pass


for family in FAMILIES.values():
    for name, training in family.trainings.items():
        main.add_command(command(name, training))


if __name__ == "__main__":
    main()
