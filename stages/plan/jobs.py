"""Jobs: a step of a shard, or several steps that are fused, as one Snakemake job."""

from __future__ import annotations

import hashlib
import math
import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, takewhile

from stages.plan.families import ALL_FAMILIES
from stages.plan.resolve import ResolvedOptions, Run
from stages.runtime.errors import JobError
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.options import GPUS, Implementation
from stages.runtime.stages import NESTED_EXTRAS, STAGES, Stage, stage_of
from stages.runtime.weights import bytes_in_memory

PROCESS_MB = 2500  # a stage without torch, and the Snakemake process that starts it on a node
LIBRARIES_MB = 2500  # torch, diffusers, transformers, and the clip itself
UNKNOWN_MB = 64_000  # the weights in memory at once, if their files are not on this machine
STARTING_MINUTES = 20
MOST_MINUTES = 1440  # unless the config says otherwise; what is not finished by then, the next attempt goes on with
CORES = 4  # of a job that reads weights or encodes films, where a scheduler gives them out
MOST_FOLDERS = 1000  # of a model: links may form a cycle
FILM_STEPS = ("concat", "score")  # steps of one job of a shard, where both are to be done
FUSED = "fused"  # the program that does several stages in one process, and the name of its jobs
DESCRIBE = "describe"  # name of the job that only updates the files that describe a run
MARKS = "KINEMAKE_MARKS"  # environment variable with the suffix of the marks folder of this run of Snakemake


@dataclass(frozen=True, slots=True)
class Part:
    """The items of one step of a shard: work of one stage with one model. `step` is the stage's name, or STAGE.LABEL."""

    run: Run
    step: str
    items: Sequence[Item]
    model: Model | None
    values: Mapping[str, ResolvedOptions]  # of the run's clips, by id

    @property
    def stage(self) -> Stage:
        return stage_of(self.step)

    @property
    def gpu(self) -> int:
        """Number of GPUs that the part needs."""
        needing = [i for i in self.items if self.stage.model and self.implementation.needs_model(i.options)]
        return max((item.options.get(GPUS, 1) for item in needing), default=0)

    @property
    def given(self) -> list[str]:
        """The user's own files that this part reads: clips, and files that options name."""
        files = dict.fromkeys(path for item in self.items for path in item.files)
        named = {path for item in self.items for path in chain(*self.implementation.files_in(item.options).values())}
        return [*(path for path in files if not path.startswith(f"{self.run.folder}/")), *sorted(named)]

    @property
    def mem_mb(self) -> int:
        """Main memory to request from a scheduler, in MB."""
        return self.requested.get("mem_mb") or PROCESS_MB + (LIBRARIES_MB + self._weights_mb if self.gpu else 0)

    @property
    def minutes(self) -> float:
        """Minutes that the items may take."""
        estimate, variant = self.implementation.minutes, self.model.variant if self.model else ""
        if estimate is None:
            return self.stage.minutes * len(self.items)
        clips = (self.values[item.id.partition("/")[0]] for item in self.items)
        return sum(estimate(variant, values[self.family]) for values in clips)

    @property
    def cores(self) -> int:
        """Number of cores to request from a scheduler."""
        return self.requested.get("cores") or (CORES if self.gpu or self.makes_films else 1)

    @property
    def makes_films(self) -> bool:
        return "film" in self.stage.writes

    @property
    def requested(self) -> Mapping[str, int]:
        """What the config requests for the jobs of the stage."""
        return self.run.resources.get(self.stage.name, {})

    @property
    def _weights_mb(self) -> int:
        if self.model is None:
            return 0
        try:
            return round(1.25e-6 * bytes_in_memory(self.model, self.implementation, self.items[0].options))
        except JobError:
            return UNKNOWN_MB

    @property
    def extra(self) -> str:
        """The optional dependencies that the part needs."""
        return self.implementation.extra or self.stage.extra

    @property
    def family(self) -> str:
        if self.model:
            return self.model.family
        able = {
            name: family.stages[self.stage.name] for name, family in ALL_FAMILIES.items() if self.stage.name in family.stages
        }
        return next((name for name, one in able.items() if not one.weights), next(iter(able)))

    @property
    def implementation(self) -> Implementation:
        return ALL_FAMILIES[self.family].stages[self.stage.name]


@dataclass(frozen=True, slots=True)
class Job:
    """A Snakemake job, which is one process: a step of a shard, or several steps of it that are fused."""

    name: str
    run: Run
    parts: Sequence[Part]  # in the order of the work
    is_fused: bool = False
    needs: set[str] = field(default_factory=set)  # names of earlier jobs of the same run
    waits: dict[str, Job] = field(default_factory=dict)  # jobs of other runs, by the file that each makes for this one

    @property
    def items(self) -> list[Item]:
        return [item for part in self.parts for item in part.items]

    @property
    def inputs(self) -> list[str]:
        """The files that Snakemake waits for."""
        marks = [mark(self.run, name) for name in sorted(self.needs)]
        marks += sorted({job.mark for job in self.waits.values()})
        models = {part.model.name: part.model for part in self.parts if part.model and part.gpu}
        return [*marks, *(weights_record(self.run, model) for model in models.values())]

    @property
    def mark(self) -> str:
        """The file that marks the job as done. Snakemake knows no other output of it.

        So Snakemake removes no results, and file times decide nothing.
        """
        return mark(self.run, self.name)

    @property
    def given(self) -> list[str]:
        """The user's own files that this job reads."""
        return [path for part in self.parts for path in part.given]

    @property
    def outputs(self) -> list[str]:
        return [item.output for item in self.items]

    @property
    def manifest(self) -> str:
        return f"{self.run.folder}/steps/manifests/{self.name}.jsonl"

    @property
    def manifest_text(self) -> str:
        """The lines of the manifest. Each line of a fused job's manifest names its step."""
        lines = [item.line(part.step if self.is_fused else "") for part in self.parts for item in part.items]
        return "".join(line + "\n" for line in lines)

    @property
    def log(self) -> str:
        return f"{self.run.folder}/steps/logs/{self.name}.log"

    @property
    def makes_films(self) -> bool:
        return self.parts[0].makes_films

    @property
    def films(self) -> list[str]:
        return [item.output for part in self.parts if part.makes_films for item in part.items]

    @property
    def is_last(self) -> bool:
        """Whether no other job passes on the failures of its items."""
        return any(part.makes_films or scores_a_film(part.step, item) for part in self.parts for item in part.items[:1])

    def only(self, film: str) -> Job:
        """A job for one film of this shard, which it scores too."""
        parts = []
        for part in self.parts:
            items = [item for item in part.items if film in (item.output, *item.files)]
            parts += [replace(part, items=items)] if items else []
        files = {path for part in parts for item in part.items for path in item.files}
        waits = {path: job for path, job in self.waits.items() if path in files}
        name = f"films/{film.removeprefix(f'{self.run.folder}/')}"
        return replace(self, name=name, parts=parts, is_fused=len(parts) > 1, waits=waits)

    @property
    def stages(self) -> set[str]:
        """The names of the stages whose work the job does."""
        return {part.stage.name for part in self.parts}

    @property
    def extra(self) -> str:
        """The optional dependencies that all stages of the job need."""
        return self._largest.extra

    @property
    def image(self) -> str:
        """Name of the container image in which all stages of the job run: the image of a stage that needs as much."""
        stage, extra = self._largest.stage, self.extra
        return stage.name if stage.extra == extra else next(one.name for one in STAGES.values() if one.extra == extra)

    @property
    def _largest(self) -> Part:
        """The part whose dependencies include those of all others."""
        return max(self.parts, key=lambda part: NESTED_EXTRAS.index(part.extra)) if self.is_fused else self.parts[0]

    def command(self, threads: int) -> str:
        """The shell command. Text from users is in the manifest, not here."""
        program = FUSED if self.is_fused else self.parts[0].stage.name
        words = [program, "--manifest", self.manifest, "--store", self.run.store]
        if any(part.stage.model for part in self.parts):
            words += ["--config", f"{self.run.folder}/config.yaml", "--threads", str(threads)]
        if not (self.is_fused or self.makes_films):  # a failed film fails its job, so that Snakemake reports it
            words += ["--mark-failed"]
        return shlex.join(words)

    @property
    def gpu(self) -> int:
        """Number of GPUs that the job needs."""
        return max(part.gpu for part in self.parts)

    def mem_mb(self, attempt: int) -> int:
        """Main memory to request from a scheduler, in MB; proportional to the attempt."""
        return attempt * max(part.mem_mb for part in self.parts)

    @property
    def cores(self) -> int:
        """Number of cores to request from a scheduler."""
        return max(part.cores for part in self.parts)

    def runtime(self, attempt: int) -> int:
        """Minutes to request from a scheduler; proportional to the attempt, up to the longest that the config allows."""
        own = [part.requested.get("runtime") for part in self.parts]
        starting = 0 if all(own) else STARTING_MINUTES
        minutes = starting + sum(one or part.minutes for one, part in zip(own, self.parts))
        most = self.run.resources.get("max_runtime", max(MOST_MINUTES, *(one or 0 for one in own)))
        return min(most, attempt * math.ceil(minutes))


def job_name(run: Run, step: str, fused: Collection[str], rank: int) -> str:
    """The name of the job that does a step of a shard; a single one does the `fused` steps."""
    return f"{run.name}.{FUSED if step in fused else step}.{rank:03d}"


def fused_steps(run: Run, steps: Iterable[str]) -> list[str]:
    """The steps that one job of a run does: all before the film, as far as one container image can.

    Empty for a run that is not fused, and without a model. `steps` are all steps of its clips, in order.
    """
    if not run.fuse:
        return []
    before = takewhile(lambda step: step not in FILM_STEPS, steps)
    nested = list(takewhile(lambda step: stage_of(step).extra in NESTED_EXTRAS, before))
    return nested if any(stage_of(step).model for step in nested) else []


def scores_a_film(step: str, item: Item) -> bool:
    """Whether an item scores a film, and not a take of a link."""
    return stage_of(step).name == "score" and item.inputs["film"].endswith(".mp4")


def mark(run: Run, job: str) -> str:
    """Path of the file that marks a job as done. It lies in Snakemake's own folder and is valid for one run of Snakemake."""
    return f"{marks_folder(run)}/{job}"


def marks_folder(run: Run) -> str:
    place = hashlib.sha256(os.path.abspath(run.folder).encode()).hexdigest()[:12]
    return f".snakemake/kinemake/{place}{os.environ.get(MARKS, '')}"


def weights_record(run: Run, model: Model) -> str:
    """Path of the record of a model's verified weights, one for all runs of a results folder."""
    return f"{os.path.dirname(run.folder)}/weights/{model.name}.json"


def weights_state(model: Model) -> list:
    """State of the files in a model's folder and in the folders that it links to."""
    folders = os.walk(model.path, followlinks=True)
    return files_state(
        sorted(os.path.join(folder, name) for folder, _, names in islice(folders, MOST_FOLDERS) for name in names)
    )


def files_state(paths: Iterable[str]) -> list:
    """Path, size, mtime and ctime of each file. The ctime is included because it cannot be set back."""
    states = [(path, os.stat(path)) for path in paths if os.path.isfile(path)]
    return [[path, state.st_size, state.st_mtime_ns, state.st_ctime_ns] for path, state in states]
