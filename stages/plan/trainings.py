"""Trainings of the config as jobs. Each has a file of options, and may start from the model of another one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.families import FAMILIES
from stages.plan.names import PATTERN
from stages.runtime.artifacts import file_digest
from stages.runtime.components import read_object
from stages.runtime.errors import JobError, UsageError, shown
from stages.runtime.model import Model, merged_settings, read_settings, settings_in
from stages.runtime.text import is_plain, read_yaml

TRAININGS = {name: training for family in FAMILIES.values() for name, training in family.trainings.items()}
KINDS = sorted(TRAININGS)


@dataclass(frozen=True)
class TrainingJob:
    """A training as a Snakemake job. Others wait for its report, which it writes last."""

    name: str
    kind: str
    config: str
    options: Any  # an instance of the options of the training
    folder: str
    inputs: tuple[str, ...]
    files: tuple[str, ...]  # its config, and the files and folders that the config names

    @property
    def rule(self) -> str:
        return f"training.{self.name}"

    @property
    def output(self) -> str:
        return f"{self.folder}/training.json"

    @property
    def log(self) -> str:
        return f"{self.folder}/training.log"

    @property
    def model(self) -> str:
        return f"{self.folder}/model"

    @property
    def message(self) -> str:
        """What Snakemake prints when the training starts."""
        return f"Training {self.name}: the log is {self.log}, the model will be in {self.model}"

    @property
    def fingerprint(self) -> str:
        return file_digest(Path(self.config))

    @cached_property
    def is_current(self) -> bool:
        """Whether the training has ended with the options that its config has now."""
        try:
            report = read_object(Path(self.output))
        except (JobError, FileNotFoundError):
            return False
        wanted, had = self.options.values(), report.get("options", {})
        return all(had[name] == value for name, value in wanted.items() if name in had)

    def command(self, threads: int) -> str:
        words = ["train", self.kind, "--config", self.config, "--output", self.folder, "--threads", str(threads)]
        return shlex.join(words)


def plan_training(name: str, path: str, folders: Mapping[str, str]) -> TrainingJob:
    """The training `name`, whose options are in the file `path`. `folders` are those of all trainings, by name.

    Raises UsageError if the file is not that of a training.
    """
    path = os.path.expanduser(path)
    values = read(name, path)
    texts = [value for value in values.values() if isinstance(value, str) and is_plain(value)]
    needed = [folder for text in texts for other, folder in folders.items() if other != name and is_within(text, folder)]
    inputs = (path, *(f"{folder}/training.json" for folder in dict.fromkeys(needed)))
    named = (place for place in map(os.path.expanduser, texts) if os.path.exists(place))
    kind = values["training"]
    try:
        options = TRAININGS[kind].options.resolved(values)
    except UsageError as error:
        raise UsageError(f"training {name} names {path} ({error.reason})", error.remedy) from None
    return TrainingJob(name, kind, path, options, folders[name], inputs, (path, *named))


def is_within(path: str, folder: str) -> bool:
    """Whether a path, however it is written, lies in a folder."""
    return Path(os.path.realpath(os.path.expanduser(path))).is_relative_to(os.path.realpath(folder))


def pending_training(model: Model | None, trainings: Iterable[TrainingJob]) -> TrainingJob | None:
    """The training whose model this is, if it has not ended, or not with the options that its config has now."""
    if model is None or not model.path:
        return None
    return next((one for one in trainings if is_within(model.path, one.folder) and not one.is_current), None)


def settings_to_come(training: TrainingJob, trainings: Iterable[TrainingJob]) -> dict[str, Any]:
    """The settings that the model of a training will have; empty if it will be no complete model. Raises UsageError."""
    if not (settings := training.options.settings()):
        return {}
    start, others = training.options.start_from, [one for one in trainings if one is not training]
    before: dict[str, Any] = {}
    if start and (earlier := next((one for one in others if is_within(start, one.folder)), None)):
        before = settings_to_come(earlier, others)
    elif start and (path := settings_in(Path(start))):
        before = read_settings(path, None)
    return merged_settings(settings, before)


def read(name: str, path: str) -> dict[str, Any]:
    remedy = f"that must be a YAML file with training: {', '.join(KINDS)}"
    if PATTERN.search(path):
        raise UsageError(f"training {name} names {shown(path)}", "leave out braces, < and >, and control characters")
    try:
        options = read_yaml(path)
    except UsageError as error:
        raise UsageError(f"training {name} names {path} ({error.reason})", remedy) from None
    if not isinstance(options, dict) or options.get("training") not in KINDS:
        raise UsageError(f"training {name} names {path}", remedy)
    return options
