"""Config + clips -> items -> shards -> jobs: what the Snakefile turns into a DAG.

Planning reads (the config, clip files, what an earlier plan fixed) and writes nothing; `Plan.write` is called when the
work starts.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import yaml

from stages.plan import lock, schema
from stages.plan.containers import environment
from stages.plan.current import Again
from stages.plan.families import ALL
from stages.plan.jobs import MARKS, Job, marks_folder
from stages.plan.names import length_fault
from stages.plan.runs import FIXED, Broken, RunPlan, plan_run, resolved_row
from stages.plan.schema import PLAN_VERSION
from stages.plan.trainings import TrainingJob, plan_training
from stages.plan.weights import WeightsJob, plan_weights
from stages.runtime.artifacts import index_path
from stages.runtime.errors import JobError, UsageError, shown
from stages.runtime.files import replacing
from stages.runtime.made import made_path
from stages.runtime.model import SETTINGS, Model, check_variant, completed, declared_model
from stages.runtime.places import folder_fault, writing_fault
from stages.runtime.table import table
from stages.runtime.text import check_values, read_yaml

__all__ = ["Plan", "UsageError", "check_files", "end_on_sigterm", "load", "own_stages", "refuse_force"]


class Plan:
    """All runs of a config. `jobs` are the shards of the model stages; `films` has a job per clip, by the film's path, and
    `folders` one of them for each run, by its folder: all ask for the same room and time.

    `weights` are the models' files, `trainings` are made only when they are asked for by name. `broken` runs and trainings
    fail, with their reasons, where they are asked for.
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
        self.weights = plan_weights(run.run for run in runs)
        self.jobs = [job for run in runs for job in run.jobs]
        self.films = {film: job for run in runs for film, job in run.films.items()}
        self.folders = [run.run.folder for run in runs]
        self.makers = {run.run.folder: next(iter(run.films.values())) for run in runs if run.films}
        self.names = {name for run in runs for name in run.names}
        self._broken_runs = broken_runs
        self.warnings = [warning for run in runs for warning in run.warnings]
        self.warnings += [f"{one.name} cannot be made: {one.reason}" for one in self.broken]

    @property
    def targets(self) -> dict[str, list[str]]:
        """What Snakemake is asked for by a run's name."""
        return {run.run.name: targets(run) for run in self.runs}

    @property
    def everything(self) -> list[str]:
        """What Snakemake is asked for where no run is named."""
        return [*chain(*self.targets.values()), *(run.output for run in self._broken_runs)]

    def rules(self) -> list[str]:
        """The names of all rules that the Snakefile makes of the plan."""
        films = [f"{Path(folder).name}.{rule}" for folder in self.folders for rule in ("film", "concat")]
        named = [*self.jobs, *self.weights, *self.broken]
        return [
            "all",
            *self.targets,
            *films,
            *(one.name for one in named),
            *(f"training.{one.name}" for one in self.trainings),
        ]

    def write(self) -> None:
        """Take the results folder for this process, fix the shards and seeds, and leave manifests and the resolved config
        for the stages. Raises UsageError where another run is in the folder, and where nothing can be written.
        """
        stores = {Path(run.run.store) for run in self.runs}
        for place in [self.results, *sorted(stores)]:
            if fault := writing_fault(place):
                raise UsageError(f"{place} cannot be written ({fault})", "mend that, or choose another folder in the config")
        with writing(self.results):
            lock.hold(self.results)
            self._check_case()
            self._write()

    def _check_folders(self) -> None:
        """Raise UsageError for a file where a folder would be, or the other way round: Snakemake has no word for that."""
        folders = set(map(str, (self.results, *self.results.parents)))
        outputs = [output for job in self.jobs for output in job.outputs]
        outputs += [name for film in self.films for name in (film, str(index_path(Path(film))))]
        outputs += [str(made_path(Path(output))) for output in outputs]
        for output in [*outputs, *(one.output for one in [*self.weights, *self.trainings, *self.broken])]:
            if os.path.isdir(output):
                raise UsageError(f"{output} is a folder, not a file", "remove it, or choose other results")
            folder = os.path.dirname(output)
            while folder and folder not in folders:
                folders.add(folder)
                folder = os.path.dirname(folder)
        if fault := next(filter(None, map(folder_fault, sorted(folders))), None):
            raise UsageError(f"the results cannot be written ({fault})", "remove it, or choose other results")

    def _check_case(self) -> None:
        """Raise UsageError for outputs that one file system takes for the same: where it finds the lock by another case."""
        name = self.results / lock.NAME
        if not (
            os.path.exists(name.with_name(lock.NAME.upper())) and os.path.samefile(name, name.with_name(lock.NAME.upper()))
        ):
            return
        seen: dict[str, str] = {}
        for output in (output for job in [*self.jobs, *self.films.values()] for output in job.outputs):
            other = seen.setdefault(output.casefold(), output)
            if other != output:
                raise UsageError(
                    f"{output} and {other} are one file: the file system of {self.results} takes no account of case",
                    "give the clips or runs other names",
                )

    def _write(self) -> None:
        for planned in self.runs:
            run = planned.run
            fixed = {"version": PLAN_VERSION, "seed": run.seed, "shards": planned.shards}
            write_if_changed(f"{run.folder}/{FIXED}", json.dumps(fixed, indent=1) + "\n")
            rows = [resolved_row(clip) for clip in planned.clips]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_if_changed(f"{run.folder}/clips.jsonl", lines)
            names = {model.name for model in run.models.values() if model}
            entry = {**planned.entry, "clips": f"{run.folder}/clips.jsonl"}
            entry["options"] = {"seed": run.seed, **run.options, **run.overriding}
            config = {
                "results": str(Path(run.folder).parent),
                "store": run.store,
                "models": {name: self.models[name] for name in sorted(names)},
                "runs": {run.name: entry},
            }
            text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
            write_if_changed(f"{run.folder}/config.yaml", text)
        for job in [*self.weights, *self.broken, *self.jobs, *self.films.values()]:
            Path(job.log).unlink(missing_ok=True)  # a log that is there in the end is one of this run
        for job in [*self.jobs, *self.films.values()]:
            write_if_changed(job.manifest, "".join(item.line() + "\n" for item in job.items))

    def begin(self) -> None:
        """Say what is odd about the clips, and forget which jobs an earlier run did: what there is to do was found anew.

        Raises UsageError for a file where a folder of the results would be.

        This has to come before the DAG is built, in a dry run too: else that would not show what will run. While another run
        is in the folder, its jobs wait for those marks: then this one looks for others.
        """
        for warning in self.warnings:
            say(f"warning: {warning}")
        self._check_folders()
        if lock.is_held(self.results):
            os.environ[MARKS] = f"-{os.getpid()}"
            return
        for run in self.runs:
            shutil.rmtree(marks_folder(run.run), ignore_errors=True)

    def container_environment(self) -> dict[str, str]:
        """What jobs in containers have to find in their environment, to see all that they read and write."""
        jobs = [*self.jobs, *self.films.values()]
        files = {path for given in [*(job.given for job in jobs), *(job.files for job in self.trainings)] for path in given}
        models = {
            model.path for run in self.runs for model in run.run.models.values() if model and os.path.isdir(model.path)
        }
        written = {*self.folders, *(run.run.store for run in self.runs)}
        with writing(self.results):
            return environment(files, models, written, os.environ)

    def film(self, folder: str, name: str) -> Job:
        """The job that makes a film. Raises UsageError for a film that is not to be made."""
        path = f"{folder}/{name}"
        self._check_film(path)
        return self.films[path]

    def before_film(self, folder: str, name: str) -> list[str]:
        """What Snakemake waits for where a film is asked for: nothing where it is current. Raises UsageError."""
        path = f"{folder}/{name}"
        self._check_film(path)
        return [self.films[path].mark] if path in self.films else []

    def _check_film(self, path: str) -> None:
        if path not in self.names:
            raise UsageError(f"{path} is not the film of a clip", f"planned are {', '.join(sorted(self.names)[:5])}, ...")

    def summary(self, failed: bool = False) -> str:
        """What the jobs of this run made and reused, and a table of what failed: also of what ended without a word, where
        Snakemake says that something failed."""
        counts = {"made": 0, "reused": 0, "failed": 0}
        rows = []
        for stage, jobs in (("plan", self.broken), ("fetch", self.weights)):
            rows += [(job.name, stage, error) for job in jobs if (error := self._read_log(job)[1])]
        for job in [*self.jobs, *self.films.values()]:
            events, error = self._read_log(job)
            for event in events:
                if event["event"] == "shard":
                    counts = {name: count + event[name] for name, count in counts.items()}
                elif event["event"] == "item" and event["status"] == "failed" and job.is_film:
                    rows.append((event["output"], event["failed_in"], f"{event['reason']}: {event['remedy']}"))
            if error and not job.is_film:  # the fault of a whole job; a film's is in its item
                rows.append((job.name, job.stage.name, error))
            elif failed and os.path.isfile(job.log) and not os.path.isfile(job.mark) and (reason := silent_end(job, events)):
                rows.append((job.name, job.stage.name, reason))
        text = f"items: {counts['made']} made, {counts['reused']} reused from the store, {counts['failed']} failed\n"
        if rows:
            text += table([("film or job", "stage", "reason and remedy"), *rows])
        return text

    def _read_log(self, job: Job | WeightsJob | Broken) -> tuple[list[dict[str, Any]], str]:
        """The events of a job of this run, and the error that ended it, if one did."""
        if not os.path.isfile(job.log):
            return [], ""
        lines = Path(job.log).read_text(errors="replace").splitlines()
        events = [event for line in lines if line.startswith('{"event": ') and (event := _event(line))]
        return events, "".join(line.removeprefix("error: ") for line in lines[-1:] if line.startswith("error: "))


def silent_end(job: Job, events: Iterable[Mapping[str, Any]]) -> str:
    """Why a job that began is not done, where it says nothing of that itself; empty for a film, whose item says it."""
    if not any(event["event"] == "shard" for event in events):
        return f"it ended without a word, as one that was killed: see {job.log}"
    return "" if job.is_film else "Snakemake did not take it for done: see its own messages"


def _event(line: str) -> dict[str, Any] | None:
    """A line of a log; None for one that a killed process left torn."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def targets(planned: RunPlan) -> list[str]:
    """What Snakemake is asked for by a run's name: its films; where all are current, a file that is there."""
    return [film.mark for film in planned.films.values()] or [f"{planned.run.folder}/{FIXED}"]


def load(config: Mapping[str, Any], workers: int, whole: bool = False) -> Plan:
    """The plan of a config: what has to be made; all that it ever makes, whatever is there, where `whole`.

    A run or a training that cannot be planned is among the plan's `broken` ones.

    Raises UsageError for a config that is wrong as a whole, and where nothing of it can be planned.
    """
    check_values(config, "the config")
    schema.check(config, "config", "config")
    results = _folder(config.get("results", "results"))
    store = _folder(config.get("store", f"{results}/store"))
    models, faults = read_models(config)
    check_places(results, store, config["runs"])
    again = Again(config.get("again", ()))
    runs, broken_runs, trainings, broken_trainings, errors = [], [], [], [], []
    for name, entry in config["runs"].items():
        folder = os.path.join(results, name)
        try:
            if fault := next((faults[model] for model in models_of(entry) if model in faults), None):
                raise fault
            runs.append(plan_run(name, config, models, folder, store, workers, again, whole))
        except UsageError as error:
            errors.append(error)
            broken_runs.append(Broken(name, str(error), f"{folder}/steps/.planned", f"{folder}/steps/logs/plan.log"))
    files = config.get("trainings", {})
    folders = {name: f"{results}/training/{name}" for name in files}
    for name, path in files.items():
        try:
            trainings.append(plan_training(name, path, folders))
        except UsageError as error:
            errors.append(error)
            output, log = f"{folders[name]}.planned", f"{folders[name]}.log"
            broken_trainings.append(Broken(f"training.{name}", str(error), output, log))
    if errors and not runs and not trainings:
        raise errors[0]
    if not errors and (unknown := again.unknown()):
        raise UsageError(
            f"again names {shown(unknown[0])}, which no run makes", "name a result with its folders, a job, a run, or all"
        )
    plan = Plan(results, runs, config["models"], trainings, broken_runs, broken_trainings)
    if twice := [name for name, count in Counter(plan.rules()).items() if count > 1]:
        raise UsageError(f"the run {twice[0]} is called like a rule of Kinemake's own", "give it another name")
    return plan


def check_places(results: str, store: str, runs: Iterable[str]) -> None:
    """Raise UsageError where the store and the runs would lie in each other, and for names that no file system takes."""
    for place in (results, store):
        if fault := length_fault(place):
            raise UsageError(f"results or store is {shown(place)}", fault)
    real_store, real_results = Path(os.path.realpath(store)), Path(os.path.realpath(results))
    if real_results.is_relative_to(real_store):
        raise UsageError(f"the store {store} holds the results, {results}", "choose another folder, such as results/store")
    if inside := [run for run in runs if real_store.is_relative_to(real_results / run)]:
        raise UsageError(f"the store {store} lies in the folder of run {inside[0]}", "choose another folder")


def _folder(path: str) -> str:
    return os.path.normpath(os.path.expanduser(path))


def check_files(paths: Iterable[Path | str]) -> None:
    """Look at config files before Snakemake reads them. Raises UsageError for one that would end in a traceback there, or
    says a thing twice; one that is missing is left to Snakemake."""
    for path in paths:
        if os.path.isfile(path):
            config = read_yaml(path)
            if config is not None and not isinstance(config, dict):
                raise UsageError(f"the config {path} is no table", "write keys such as runs: at its top")


@contextmanager
def writing(results: Path) -> Iterator[None]:
    """Turn the errors of a file system into a UsageError."""
    try:
        yield
    except OSError as error:
        place = error.filename or results
        raise UsageError(
            f"{place} cannot be written ({error.strerror or error})", "mend that, or choose other results"
        ) from error


def models_of(run: Mapping[str, Any]) -> list[Any]:
    """The names of the models that a run of the config uses."""
    return [run[key] for key in ("model", "captioner") if key in run]


def read_models(config: Mapping[str, Any]) -> tuple[dict[str, Model], dict[str, UsageError]]:
    """The declared models, and what is wrong with the folders of those that runs name: that is the fault of these runs.

    Only these are completed with what their folders say. Raises UsageError for a wrong declaration.
    """
    models = {name: declared_model(name, entry) for name, entry in config["models"].items()}
    faults: dict[str, UsageError] = {}
    used = {name for run in config["runs"].values() for name in models_of(run)}
    for name, model in models.items():
        if model.variant or model.hub and name not in used:  # in a folder that is not here, nobody can tell it
            check_variant(model, ALL[model.family])
        if name in used:
            try:
                models[name] = completed(model, ALL)
                check_recipe_options(models[name])
            except UsageError as error:
                faults[name] = error
            except JobError as error:
                faults[name] = UsageError(f"model {name}: {error.reason}", error.remedy)
    return models, faults


def check_recipe_options(model: Model) -> None:
    """Raise UsageError for an option of recipes that a model's folder sets wrongly."""
    known = schema.all_options()
    for name, value in model.options.items():
        if name not in known:
            raise UsageError(f"{model.folder() / SETTINGS} sets {name!r}, which is no option of a recipe", "leave it out")
        known[name].parse(value)


def own_stages(checkout: Path | str, deployed: bool) -> str:
    """What comes before the name of a stage so that it is the one of `checkout`, run by this very interpreter.

    Other programs of that name may be on the PATH, other packages in the working folder. Where stages are `deployed`, in
    images or environments, theirs are on the PATH; envs/*.yaml install them from the checkout, which a variable names.
    """
    if deployed:
        os.environ["KINEMAKE"] = str(checkout)
        return ""
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    return f"PYTHONPATH={shlex.quote(path)} {shlex.quote(sys.executable)} -P -m stages."


def write_if_changed(path: str, text: str) -> None:
    """Write a small file whole or not at all; an equal one keeps its time."""
    target = Path(path)
    data = text.encode()
    if os.path.isfile(target) and target.read_bytes() == data:
        return
    with replacing(target) as temporary:
        temporary.write_bytes(data)


def refuse_force(settings: Any) -> None:
    """End Snakemake where it is to force jobs: of those it only knows the ones that are not current, and the store."""
    if settings.forceall or settings.forcerun or settings.forcetargets:
        sys.exit("error: -f, -F and -R have no effect here: use --config 'again=[NAME, ...]', see docs/config.md")


def end_on_sigterm() -> None:
    """Let SIGTERM, which Slurm and systemd send, end this process and its stages in order, as Ctrl-C at a terminal does.

    Snakemake's own handler waits for a lock that the interrupted thread may hold, and then for ever.
    """

    def end(number, frame):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.terminate()
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


def say(text: str) -> None:
    """To standard error: standard output belongs to `snakemake --dag` and its like."""
    print(text, file=sys.stderr)
