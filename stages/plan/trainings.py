"""Trainings of the config as jobs: each has a file of options, and may start from what another one leaves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.models import FAMILIES
from stages.runtime.artifacts import file_digest
from stages.runtime.errors import UsageError

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


def plan_trainings(files: Mapping[str, str], results: str) -> list[TrainingJob]:
    """The trainings of a config: name -> file. Raises UsageError for a file that is none of a training."""
    folders = {name: f"{results}/training/{name}" for name in files}
    jobs = []
    for name, path in files.items():
        options = read(name, path)
        needed = [
            folder
            for value in options.values()
            for other, folder in folders.items()
            if other != name and isinstance(value, str) and Path(value).is_relative_to(folder)
        ]
        inputs = (path, *(f"{folder}/training.json" for folder in dict.fromkeys(needed)))
        named = (value for value in options.values() if isinstance(value, str) and os.path.exists(value))
        jobs.append(TrainingJob(name, options["training"], path, folders[name], inputs, (path, *named)))
    return jobs


def read(name: str, path: str) -> dict[str, Any]:
    try:
        options = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if options["training"] in KINDS:
            return options
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        pass
    raise UsageError(f"training {name} names {path}", f"that must be a YAML file with training: {', '.join(KINDS)}")
