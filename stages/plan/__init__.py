"""Config + clips -> items -> shards -> jobs: what the Snakefile turns into a DAG.

Planning reads (the config, clip files, what an earlier plan fixed) and writes nothing; `Plan.write` is called when the
work starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.plan import lock, schema
from stages.plan.containers import environment
from stages.plan.families import ALL
from stages.plan.jobs import Job
from stages.plan.runs import PLAN_VERSION, RunPlan, plan_run, resolved_row
from stages.plan.trainings import TrainingJob, plan_trainings
from stages.plan.weights import WeightsJob, plan_weights
from stages.runtime.artifacts import read_failure
from stages.runtime.errors import JobError, UsageError
from stages.runtime.model import SETTINGS, Model, check_variant, completed, declared_model
from stages.runtime.table import table

__all__ = ["Plan", "UsageError", "find_stages", "load"]


class Plan:
    """All runs of a config. `jobs` are the shards of the model stages; `films` has a job per clip, by the film's path.

    `weights` are the models' files, `trainings` are made only when they are asked for by name.
    """

    def __init__(self, results: str, runs: list[RunPlan], models: Mapping[str, Any], trainings: list[TrainingJob]):
        self.results, self.runs, self.models, self.trainings = Path(results), runs, models, trainings
        self.weights = plan_weights(run.run for run in runs)
        self.jobs = [job for run in runs for job in run.jobs]
        self.films = {film: job for run in runs for film, job in run.films.items()}
        self.folders = [run.run.folder for run in runs]
        self.targets = {run.run.name: list(run.films) for run in runs}
        self.warnings = [warning for run in runs for warning in run.warnings]
        self._start = time.time()

    def write(self) -> None:
        """Take the results folder for this process, fix the shards and seeds, and leave manifests and the resolved config
        for the stages. Raises UsageError where another run is in the folder.
        """
        lock.hold(self.results)
        for planned in self.runs:
            run = planned.run
            fixed = {"version": PLAN_VERSION, "seed": run.seed, "shards": planned.shards}
            write_if_changed(f"{run.folder}/plan.json", json.dumps(fixed, indent=1) + "\n")
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
        for job in [*self.jobs, *self.films.values()]:
            write_if_changed(job.manifest, "".join(item.line() + "\n" for item in job.items))

    def begin(self) -> None:
        """Say what is odd about the clips, and remove what failed the last time, so that it is tried again.

        This has to come before the DAG is built, in a dry run too: else that would not show what will run. Not while
        another run is in the folder: its jobs read those files.
        """
        for warning in self.warnings:
            say(f"warning: {warning}")
        if lock.is_held(self.results):
            return
        failed = [output for job in self.jobs for output in job.outputs if read_failure(Path(output))]
        for output in failed:
            os.unlink(output)
        if failed:
            say(f"{len(failed)} items that failed the last time will be tried again")

    def container_environment(self) -> dict[str, str]:
        """What jobs in containers have to find in their environment, to see all that they read and write."""
        jobs = [*self.jobs, *self.films.values()]
        files = {path for given in [*(job.given for job in jobs), *(job.files for job in self.trainings)] for path in given}
        models = {
            model.path for run in self.runs for model in run.run.models.values() if model and os.path.isdir(model.path)
        }
        written = {*self.folders, *(run.run.store for run in self.runs)}
        return environment(files, models, written, os.environ)

    def film(self, folder: str, name: str) -> Job:
        """The job that makes a film. Raises UsageError for a film that is not planned."""
        path = f"{folder}/{name}.mp4"
        if path not in self.films:
            raise UsageError(f"{path} is not the film of a clip", f"planned are {', '.join([*self.films][:5])}, ...")
        return self.films[path]

    def summary(self) -> str:
        """What the jobs that ran since this plan was made made and reused, and a table of what failed."""
        counts = {"made": 0, "reused": 0, "failed": 0}
        rows = []
        for job in self.weights:
            _, error = self._read_log(job)
            if error:
                rows.append((job.name, "fetch", error))
        for job in [*self.jobs, *self.films.values()]:
            events, error = self._read_log(job)
            for event in events:
                if event["event"] == "shard":
                    counts = {name: count + event[name] for name, count in counts.items()}
                elif event["event"] == "item" and event["status"] == "failed" and job.is_film:
                    rows.append((event["output"], event["failed_in"], f"{event['reason']}: {event['remedy']}"))
            if error and not job.is_film:  # the fault of a whole job; a film's is in its item
                rows.append((job.name, job.stage.name, error))
            elif self._ran(job) and not any(event["event"] == "shard" for event in events):
                rows.append((job.name, job.stage.name, f"it ended without a word, as one that was killed: see {job.log}"))
        text = f"items: {counts['made']} made, {counts['reused']} reused from the store, {counts['failed']} failed\n"
        if rows:
            text += table([("film or job", "stage", "reason and remedy"), *rows])
        return text

    def _ran(self, job: Job | WeightsJob) -> bool:
        return os.path.isfile(job.log) and os.stat(job.log).st_mtime >= self._start

    def _read_log(self, job: Job | WeightsJob) -> tuple[list[dict[str, Any]], str]:
        """The events of a job that ran since this plan was made, and the error that ended it, if one did."""
        if not self._ran(job):
            return [], ""
        lines = Path(job.log).read_text(errors="replace").splitlines()
        events = [json.loads(line) for line in lines if line.startswith('{"event": ') and line.endswith("}")]
        return events, "".join(line.removeprefix("error: ") for line in lines[-1:] if line.startswith("error: "))


def load(config: Mapping[str, Any], workers: int) -> Plan:
    """The plan of a config. Raises UsageError for whatever in it cannot be done."""
    schema.check(config, "config", "config")
    results = config.get("results", "results").rstrip("/")
    store = config.get("store", f"{results}/store")
    models = read_models(config)
    runs = [plan_run(name, config, models, f"{results}/{name}", store, workers) for name in config["runs"]]
    return Plan(results, runs, config["models"], plan_trainings(config.get("trainings", {}), results))


def read_models(config: Mapping[str, Any]) -> dict[str, Model]:
    """The declared models, with what their folders say of them; of the hub's only those that runs name are looked for.

    Raises UsageError.
    """
    models = {name: declared_model(name, entry) for name, entry in config["models"].items()}
    used = {run.get(key) for run in config["runs"].values() for key in ("model", "captioner")}
    for name, model in models.items():
        if name in used or (model.path and os.path.isdir(model.path)):
            try:
                models[name] = completed(model, ALL)
            except JobError as error:
                raise UsageError(f"model {name}: {error.reason}", error.remedy) from None
            check_recipe_options(models[name])
        elif model.variant or model.hub:  # in a folder that is not here, nobody can tell it
            check_variant(model, ALL[model.family])
    return models


def check_recipe_options(model: Model) -> None:
    """Raise UsageError for an option of recipes that a model's folder sets wrongly."""
    known = schema.all_options()
    for name, value in model.options.items():
        if name not in known:
            raise UsageError(f"{model.folder() / SETTINGS} sets {name!r}, which is no option of a recipe", "leave it out")
        known[name].parse(value)


def find_stages(checkout: Path | str) -> None:
    """Let jobs without an environment of their own find the stages that are installed beside this program.

    The environments of conda install them from `checkout`: envs/*.yaml name the variable that says where it is.
    """
    os.environ["KINEMAKE"] = str(checkout)
    own = str(Path(sys.executable).parent)
    if own not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([own, os.environ["PATH"]])


def write_if_changed(path: str, text: str) -> None:
    """Write a small file whole or not at all; an equal one keeps its time."""
    target = Path(path)
    if target.is_file() and target.read_text() == text:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(text)
    temporary.replace(target)


def say(text: str) -> None:
    """To standard error: standard output belongs to `snakemake --dag` and its like."""
    print(text, file=sys.stderr)
