"""The plan of a config, with the interface that the Snakefile uses: jobs, films, targets and rules."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from stages.plan import lock
from stages.plan.captions import STAGE as CAPTION
from stages.plan.captions import write_sheet
from stages.plan.containers import environment
from stages.plan.description import describe
from stages.plan.jobs import DESCRIBE, MARKS, Job, Part, mark, marks_folder
from stages.plan.places import check_case, check_folders, check_working_folder, check_writable, writing
from stages.plan.runs import FIXED, Broken, RunPlan
from stages.plan.scores import write_scores
from stages.plan.trainings import TrainingJob
from stages.plan.weights import plan_weights
from stages.runtime.errors import UsageError, shown
from stages.runtime.files import holds, write_if_changed
from stages.runtime.store_cleaning import note_results


class Plan:
    """All runs of a config.

    Attributes:
        jobs: the shards of the steps, a job each or fused.
        caption_jobs: the captions of fused runs, which their jobs make too. They run only if they are requested.
        films: the job of each stale film, by the film's path.
        weights: one job per model, for its files.
        trainings: trainings; they run only if they are requested by name, or by a run whose model one of them makes.
        active, active_trainings: the runs of which Snakemake runs jobs, and the trainings; all, until `write` is called.
        broken: runs and trainings that cannot be planned. Each fails with its reason when it is requested.
    """

    def __init__(
        self,
        results: str,
        runs: list[RunPlan],
        models: Mapping[str, Any],
        trainings: list[TrainingJob],
        broken_runs: list[Broken],
        broken_trainings: list[Broken],
    ):
        self.results, self.runs, self.models, self.trainings = Path(results), runs, models, trainings
        self.broken = [*broken_runs, *broken_trainings]
        self.weights = plan_weights((run.run for run in runs), trainings)
        self.jobs = [job for run in runs for job in run.jobs]
        self.caption_jobs = [job for run in runs for job in run.caption_jobs]
        self.films = {film: job for run in runs for film, job in run.films.items()}
        self.folders = {run.run.folder: run for run in runs}
        self.active, self.active_trainings = runs, trainings
        self._started = False
        self._requested: dict[str, Job] = {}  # jobs of single films, by the film's path
        self.names = {name for run in runs for name in run.names}
        self._described: dict[str, bool] = {}
        self._broken_runs = broken_runs
        self.warnings = [warning for run in runs for warning in run.warnings]
        self.warnings += [f"{one.name} cannot be made: {one.reason}" for one in self.broken]

    @property
    def parts(self) -> list[Part]:
        """The stale steps, by shard."""
        return [part for run in self.runs for part in run.parts]

    @property
    def needs_gpu(self) -> bool:
        """Whether any job works on a GPU if there is one."""
        return any(job.gpu for job in self.jobs)

    @property
    def active_jobs(self) -> list[Job]:
        """The jobs of the active runs, and of the films that are requested by path."""
        runs = {planned.run.folder for planned in self.active}
        requested = [job for job in self._requested.values() if job.run.folder in runs]
        own = (job for planned in self.active for job in (*planned.jobs, *planned.caption_jobs))
        return [*own, *requested]

    @property
    def worked(self) -> list[RunPlan]:
        """The runs of which this process has run jobs."""
        return self.active if self._started else []

    # --------------------------------------------------------------------------------------------------------- targets

    @cached_property
    def targets(self) -> dict[str, list[str]]:
        """Files that Snakemake makes for each name that a user can request: a run, or a stage of it as RUN.STAGE."""
        found: dict[str, list[str]] = {}
        for planned in self.runs:
            run, *stages = target_names(planned)
            needed = {name for job in planned.jobs for name in job.needs}
            found[run] = self._marks(planned, (job for job in planned.jobs if job.name not in needed))
            for name, stage in zip(stages, planned.stages):
                found[name] = self._marks(planned, caption_jobs(planned) if stage == CAPTION else jobs_of(planned, stage))
        return found

    def _marks(self, planned: RunPlan, jobs: Iterable[Job]) -> list[str]:
        """Marks that stand for jobs of a run. Without jobs, the mark of its description, or an existing file."""
        marks = [job.mark for job in jobs]
        return marks or self._description(planned) or [f"{planned.run.folder}/{FIXED}"]

    @property
    def descriptions(self) -> dict[str, str]:
        """The mark of the job that only describes a run, by the run's name."""
        return {planned.run.name: mark(planned.run, DESCRIBE) for planned in self.runs}

    def _description(self, planned: RunPlan) -> list[str]:
        """The mark of the job that describes a run, or nothing if the description is up to date."""
        folder = planned.run.folder
        if folder not in self._described:
            texts = describe(planned, self.models)
            self._described[folder] = all(holds(path, text) for path, text in texts.items())
        return [] if self._described[folder] else [mark(planned.run, DESCRIBE)]

    @property
    def everything(self) -> list[str]:
        """The files that Snakemake makes if no target is named."""
        runs = (self.targets[planned.run.name] for planned in self.runs)
        return [*chain(*runs), *(run.output for run in self._broken_runs)]

    @cached_property
    def spellings(self) -> dict[str, tuple[str, str]]:
        """Rules for films that are requested by path: by name, a run's folder and one spelling of that folder."""
        found: dict[str, tuple[str, str]] = {}
        for folder, planned in self.folders.items():
            ways = dict.fromkeys([os.path.relpath(folder), os.path.abspath(folder), os.path.realpath(folder), folder])
            found |= {f"{planned.run.name}.film{number or ''}": (folder, way) for number, way in enumerate(ways)}
        return found

    def rules(self) -> list[str]:
        """The names of all rules that the Snakefile defines for the plan."""
        return [
            "all",
            *(name for planned in self.runs for name in target_names(planned)),
            *self.spellings,
            *chain(*(work_rules(planned) for planned in self.runs)),
            *(weights.name for weights in self.weights),
            *(broken.name for broken in self.broken),
            *(one.rule for one in self.trainings),
        ]

    def check_request(self, settings: Any) -> None:
        """Raise UsageError for command-line options of Snakemake that cannot work here.

        Snakemake knows the jobs to run, but neither finished results nor the store.
        """
        if settings.forceall or settings.forcerun or settings.forcetargets:
            raise UsageError("-f, -F and -R have no effect here", "use --config 'again=[NAME, ...]', see docs/config.md")
        example = next((name for name in self.targets if name.endswith(".generate")), "RUN.generate")
        rules = set(self.rules()) if settings.until else set()
        if unknown := [name for name in settings.until if "/" not in name and name not in rules]:
            raise UsageError(
                f"--until names {shown(unknown[0])}, which is not a target",
                f"name a stage of a run, such as {example}, or a job as -n shows it",
            )
        jobs = {job.name for job in self.jobs} | {weights.name for weights in self.weights}
        if unknown := [name for name in settings.omit_from if name not in jobs]:
            raise UsageError(
                f"--omit-from names {shown(unknown[0])}, which is not a job of this plan",
                f"ask for the last stage that you want, such as {example}, or name a job as -n shows it",
            )

    # ----------------------------------------------------------------------------------------------------------- films

    @property
    def film_marks(self) -> dict[str, str]:
        """The folder of the marks of each run with stale films, by the run's folder."""
        return {run.run.folder: marks_folder(run.run) for run in self.runs if run.films}

    def film(self, folder: str, name: str) -> Job:
        """The job that makes a stale film alone, for those who request it by its path. Raises UsageError."""
        path = f"{folder}/{name}"
        self._check_film(path)
        if path not in self._requested:
            self._requested[path] = self.films[path].only(path)
        return self._requested[path]

    @property
    def films_of_runs(self) -> dict[str, list[str]]:
        """The paths of all films of each run, by its name."""
        return {planned.run.name: sorted(planned.names) for planned in self.runs}

    def before_film(self, folder: str, name: str, describes: bool = True) -> list[str]:
        """The files that Snakemake waits for before a requested film.

        For a current film, that is only the description of its run, if it `describes` the run and the description is not
        up to date. Raises UsageError.
        """
        path = f"{folder}/{name}"
        self._check_film(path)
        if path in self.films:
            return [self.film(folder, name).mark]
        return self._description(self.folders[folder]) if describes else []

    def _check_film(self, path: str) -> None:
        if path not in self.names:
            raise UsageError(f"{path} is not the film of a clip", f"planned are {', '.join(sorted(self.names)[:5])}, ...")

    # ------------------------------------------------------------------------------------------------------------ work

    def begin(self) -> None:
        """Print warnings about the clips, and remove the job marks of earlier runs of Snakemake.

        Call it before the DAG is built, also in a dry run, because the DAG shows what will run. If another run is in the
        folder, its marks stay and this run uses a marks folder of its own. Raises UsageError if the results or the working
        folder are unusable.
        """
        for warning in self.warnings:
            # standard output belongs to `snakemake --dag` and its like
            print(f"warning: {warning}", file=sys.stderr)
        check_working_folder(self)
        check_folders(self)
        if lock.is_held(self.results):
            os.environ[MARKS] = f"-{os.getpid()}"
            return
        for run in self.runs:
            shutil.rmtree(marks_folder(run.run), ignore_errors=True)

    def container_environment(self) -> dict[str, str]:
        """The environment variables of jobs in containers, which bind everything that they read and write."""
        files = {path for job in self.jobs for path in job.given}
        files |= {path for job in self.trainings for path in job.files}
        models = {model.path for run in self.runs for model in run.run.all_models if os.path.isdir(model.path)}
        written = {*self.folders, *(run.run.store for run in self.runs)}
        with writing(self.results):
            return environment(files, models, written, os.environ)

    def write(self, rules: Iterable[str] | None = None) -> None:
        """Lock the results folder for this process, and write the manifests and descriptions of the runs that have work.

        `rules` are the names of the rules that Snakemake will run, by default all. Raises UsageError if another run is in
        the folder, or if something cannot be written. A second call has no effect.
        """
        if self._started:
            return
        running, self._started = set(rules or ()), True
        if rules is not None:
            self.active = [planned for planned in self.runs if not running.isdisjoint(work_rules(planned))]
            self.active_trainings = [one for one in self.trainings if one.rule in running]
        check_writable(self)
        with writing(self.results):
            lock.hold(self.results)
            check_case(self)
            for planned in self.active:
                note_results(Path(planned.run.store), self.results)
                for path, text in describe(planned, self.models).items():
                    write_if_changed(path, text)
            for weights in self.weights:
                if rules is None or weights.name in running:
                    declared = {weights.model.name: self.models[weights.model.name]}
                    write_if_changed(weights.config, yaml.safe_dump({"models": declared}, allow_unicode=True))
            for log in self._logs():
                Path(log).unlink(missing_ok=True)  # a log that exists at the end belongs to this run
            for job in self.active_jobs:
                write_if_changed(job.manifest, job.manifest_text)

    def write_tables(self) -> None:
        """Write the caption sheets and the tables of scores of the runs that had work, of all that is made by now."""
        for planned in self.worked:
            for name, write in (("captions", write_sheet), ("scores", write_scores)):
                try:
                    write(planned.run.folder, planned.clips)
                except (OSError, UsageError) as error:  # the films are there, whatever becomes of the tables
                    print(f"warning: the {name} in {planned.run.folder} are not written: {error}", file=sys.stderr)

    def _logs(self) -> list[str]:
        logs = [weights.log for weights in self.weights] + [broken.log for broken in self.broken]
        return [*logs, *(job.log for job in self.active_jobs), *(one.log for one in self.active_trainings)]


def work_rules(planned: RunPlan) -> list[str]:
    """The names of the rules of a run that do work."""
    return [
        *(f"{planned.run.name}.{rule}" for rule in (DESCRIBE, "concat.film")),
        *(job.name for job in (*planned.jobs, *planned.caption_jobs)),
    ]


def jobs_of(planned: RunPlan, stage: str) -> list[Job]:
    """The jobs of a run that do the work of a stage."""
    return [job for job in planned.jobs if stage in job.stages]


def caption_jobs(planned: RunPlan) -> list[Job]:
    """The jobs that caption without waiting for a clip to be generated: of a chain, those of the first link."""
    return [*planned.caption_jobs, *(job for job in jobs_of(planned, CAPTION) if not (job.is_fused or job.needs))]


def target_names(planned: RunPlan) -> list[str]:
    """The target names of a run: its own name, and one for each of its stages."""
    return [planned.run.name, *(f"{planned.run.name}.{stage}" for stage in planned.stages)]
