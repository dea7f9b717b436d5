"""A job: a shard of a stage, as Snakemake runs it."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from stages.plan.families import ALL
from stages.plan.resolve import Run
from stages.runtime.errors import JobError
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.options import GPUS
from stages.runtime.stages import Stage
from stages.runtime.weights import resident_bytes

PROCESS_MB = 2500  # of a stage without torch, and of the Snakemake that starts it on a node
LIBRARIES_MB = 2500  # torch, diffusers, transformers, and the clip itself
UNKNOWN_MB = 64_000  # the weights that are in memory at once, while they are not here to be looked at
STARTING_MINUTES = 20
MOST_FOLDERS = 1000  # of a model: links may lead in a circle
MARKS = "KINEMAKE_MARKS"  # a variable: what tells the marks of this run of Snakemake, and its jobs, from those of another


@dataclass(frozen=True, slots=True)
class Job:
    """A shard of a stage: one Snakemake job, one process."""

    name: str
    stage: Stage
    run: Run
    items: Sequence[Item]
    model: Model | None
    needs: set[str] = field(default_factory=set)  # names of the jobs that come before it

    @property
    def inputs(self) -> list[str]:
        """What must be there first, as Snakemake waits for it."""
        marks = [mark(self.run, name) for name in sorted(self.needs)]
        return [*marks, weights_record(self.run, self.model)] if self.model and self.gpu else marks

    @property
    def marks(self) -> str:
        return marks_folder(self.run)

    @property
    def mark(self) -> str:
        """The file that says that the job is done: all that Snakemake knows of its results. So it removes none of them, and
        no date of a file decides anything."""
        return mark(self.run, self.name)

    @property
    def _files(self) -> list[str]:
        return list(dict.fromkeys(path for item in self.items for path in item.files))

    @property
    def given(self) -> list[str]:
        """The user's own files that this job reads: clips, and those that an option names."""
        options = {option.name for option in ALL[self.family].of_stage(self.stage.name) if option.is_file}
        named = {value for item in self.items for name, value in item.options.items() if name in options}
        return [*(path for path in self._files if not self._is_made(path)), *sorted(named)]

    def _is_made(self, path: str) -> bool:
        return path.startswith(f"{self.run.folder}/")

    @property
    def outputs(self) -> list[str]:
        return [item.output for item in self.items]

    @property
    def manifest(self) -> str:
        return f"{self.run.folder}/steps/manifests/{self.name}.jsonl"

    @property
    def log(self) -> str:
        ending = ".mp4" if self.is_film else ""  # the rule of films has one wildcard, which is the film's whole name
        return f"{self.run.folder}/steps/logs/{self.name}{ending}.log"

    @property
    def is_film(self) -> bool:
        return self.stage.writes == "film"

    def command(self, threads: int) -> str:
        """The shell command. Whatever came from a user is in the manifest, not here."""
        words = [self.stage.name, "--manifest", self.manifest, "--store", self.run.store]
        if self.stage.model:
            words += ["--config", f"{self.run.folder}/config.yaml", "--threads", str(threads)]
        if not self.is_film:  # a film that cannot be made is a failed job, so that Snakemake's report is true
            words += ["--mark-failed"]
        return shlex.join(words)

    @property
    def gpu(self) -> int:
        """How many devices the job needs."""
        needing = [i for i in self.items if self.stage.model and ALL[self.family].needs_model(self.stage.name, i.options)]
        return max((item.options.get(GPUS.name, 1) for item in needing), default=0)

    def mem_mb(self, attempt: int) -> int:
        """Main memory to ask a scheduler for, in MB: more with each attempt."""
        own = self.run.resources.get(self.stage.name, {}).get("mem_mb")
        return attempt * (own or PROCESS_MB + (LIBRARIES_MB + self._weights_mb if self.gpu else 0))

    def runtime(self, attempt: int) -> int:
        """Minutes to ask a scheduler for: more with each attempt."""
        own = self.run.resources.get(self.stage.name, {}).get("runtime")
        return attempt * (own or STARTING_MINUTES + self.stage.minutes * len(self.items))

    @property
    def _weights_mb(self) -> int:
        groups = ALL[self.family].resident.get(self.stage.name, ())
        try:
            return round(1.25e-6 * resident_bytes(self.model, groups, self.items[0].options.get("dtype", "")))
        except JobError:
            return UNKNOWN_MB

    @property
    def family(self) -> str:
        return self.model.family if self.model else next(n for n, f in ALL.items() if self.stage.name in f.workers)


def mark(run: Run, job: str) -> str:
    """Where it is noted that a job is done: in Snakemake's own folder, and good for one run of Snakemake."""
    ending = ".mp4" if job.startswith("films/") else ""
    return f"{marks_folder(run)}/{job}{ending}"


def marks_folder(run: Run) -> str:
    place = hashlib.sha256(os.path.abspath(run.folder).encode()).hexdigest()[:12]
    return f".snakemake/kinemake/{place}{os.environ.get(MARKS, '')}"


def weights_record(run: Run, model: Model) -> str:
    """Where it is written that a model's weights are here and whole: once for all runs of a results folder."""
    return f"{os.path.dirname(run.folder)}/weights/{model.name}.json"


def weights_state(model: Model) -> list:
    """State of the files in a model's folder, and in those that it links."""
    folders = os.walk(model.path, followlinks=True)
    return files_state(
        sorted(os.path.join(folder, name) for folder, _, names in islice(folders, MOST_FOLDERS) for name in names)
    )


def files_state(paths: Iterable[str]) -> list:
    """Names, sizes and times of the files among `paths`; the time of the last change cannot be set back."""
    states = [(path, os.stat(path)) for path in paths if os.path.isfile(path)]
    return [[path, state.st_size, state.st_mtime_ns, state.st_ctime_ns] for path, state in states]
