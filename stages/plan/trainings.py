"""Trainings of the config as jobs: each has a file of options, and may start from what another one leaves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.models import FAMILIES
from stages.plan.names import PATTERN
from stages.runtime.artifacts import file_digest
from stages.runtime.errors import UsageError, shown
from stages.runtime.text import is_plain, read_yaml

KINDS = sorted(name for family in FAMILIES.values() for name in family.trainings)


@dataclass(frozen=True)
class TrainingJob:
    """A training as Snakemake runs it. Its report, written at the end, is what others wait for."""

    name: str
    kind: str
    config: str
    folder: str
    inputs: tuple[str, ...]
    files: tuple[str, ...]  # its config, and the files and folders that this names

    @property
    def output(self) -> str:
        return f"{self.folder}/training.json"

    @property
    def log(self) -> str:
        return f"{self.folder}/training.log"

    @property
    def fingerprint(self) -> str:
        return file_digest(Path(self.config))

    def command(self, threads: int) -> str:
        words = ["train", self.kind, "--config", self.config, "--output", self.folder, "--threads", str(threads)]
        return shlex.join(words)


def plan_training(name: str, path: str, folders: Mapping[str, str]) -> TrainingJob:
    """The training `name`, whose options are in a file; `folders` are those of all trainings, by name.

    Raises UsageError for a file that is none of a training.
    """
    path = os.path.expanduser(path)
    options = read(name, path)
    needed = [
        folder
        for value in options.values()
        for other, folder in folders.items()
        if other != name and isinstance(value, str) and Path(value).is_relative_to(folder)
    ]
    inputs = (path, *(f"{folder}/training.json" for folder in dict.fromkeys(needed)))
    places = (os.path.expanduser(value) for value in options.values() if isinstance(value, str))
    named = (place for place in places if is_plain(place) and os.path.exists(place))
    return TrainingJob(name, options["training"], path, folders[name], inputs, (path, *named))


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
