"""Config + clips -> items -> shards -> jobs: what the Snakefile turns into a DAG.

Planning reads (the config, clip files, what an earlier plan fixed) and writes nothing; `Plan.write` is called when the
work starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from stages.plan import schema
from stages.plan.clips import read_clips
from stages.plan.families import ALL
from stages.plan.recipes import RECIPES
from stages.plan.resolve import Clip, Run, Values, check_template, resolve_clip
from stages.plan.shards import assign
from stages.runtime.artifacts import Failure, canonical, read_failure
from stages.runtime.errors import UsageError
from stages.runtime.items import Item
from stages.runtime.model import Model, declared_model
from stages.runtime.stages import STAGES, Stage

PLAN_VERSION = 1
PATTERN = set("{}\n")  # Snakemake reads what is in braces as a wildcard, and warns of line breaks


@dataclass(frozen=True)
class Job:
    """A shard of a stage: one Snakemake job, one process."""

    name: str
    stage: Stage
    run: Run
    items: Sequence[Item]
    model: Model | None

    @property
    def inputs(self) -> list[str]:
        """What must be there first. A user's file that is missing is left out: its clip fails, not the whole DAG.

        So is one whose name Snakemake would take for a pattern. The fingerprint has the state of each.
        """
        return [path for path in self._files if self._is_made(path) or (os.path.isfile(path) and not set(path) & PATTERN)]

    @property
    def _files(self) -> list[str]:
        return list(dict.fromkeys(path for item in self.items for path in item.files))

    def _is_made(self, path: str) -> bool:
        return path.startswith(f"{self.run.folder}/")

    @property
    def outputs(self) -> list[str]:
        return [item.output for item in self.items]

    @property
    def manifest(self) -> str:
        return f"{self.run.folder}/work/manifests/{self.name}.jsonl"

    @property
    def log(self) -> str:
        return f"{self.run.folder}/work/logs/{self.name}.log"

    def command(self, threads: int) -> str:
        """The shell command. Whatever came from a user is in the manifest, not here."""
        words = [self.stage.name, "--manifest", self.manifest, "--store", self.run.store]
        if self.stage.model:
            words += ["--config", f"{self.run.folder}/config.yaml", "--threads", str(threads)]
        if self.stage.writes != "film":  # a film that cannot be made is a failed job, so that Snakemake's report is true
            words += ["--mark-failed"]
        return shlex.join(words)

    @property
    def gpu(self) -> int:
        return int(self.stage.model and any(ALL[self.family].needs_model(self.stage.name, i.options) for i in self.items))

    @property
    def family(self) -> str:
        return self.model.family if self.model else next(n for n, f in ALL.items() if self.stage.name in f.workers)

    @property
    def fingerprint(self) -> str:
        """Changes when the results would: a parameter, the model, the version of the code. Devices do not enter."""
        family = ALL[self.family]
        changing = {option.name for option in family.of_stage(self.stage.name) if option.changes_result}
        work = [
            [item.inputs, item.output, {name: value for name, value in item.options.items() if name in changing}]
            for item in self.items
        ]
        model = self.model and [asdict(self.model), weights_state(self.model)]
        given = files_state(path for path in self._files if not self._is_made(path))
        return hashlib.sha256(canonical([self.stage.version, family.version, model, given, work])).hexdigest()


def weights_state(model: Model) -> list:
    """State of a model folder's files: new weights under the same path are another model."""
    return files_state(sorted(map(str, Path(model.path).rglob("*")))) if model.path else []


def files_state(paths: Iterable[str]) -> list:
    """Names, sizes and times of the files among `paths`."""
    states = [(path, os.stat(path)) for path in paths if os.path.isfile(path)]
    return [[path, state.st_size, state.st_mtime_ns] for path, state in states]


@dataclass
class RunPlan:
    """A run, planned: its clips, shards and jobs."""

    run: Run
    entry: Mapping[str, Any]
    clips: list[Clip]
    shards: list[list[str]]
    warnings: list[str]
    jobs: list[Job] = field(default_factory=list)
    films: dict[str, Job] = field(default_factory=dict)


class Plan:
    """All runs of a config. `jobs` are the shards of the model stages; `films` has a job per clip, by the film's path."""

    def __init__(self, runs: list[RunPlan], models: Mapping[str, Any]):
        self.runs, self.models = runs, models
        self.jobs = [job for run in runs for job in run.jobs]
        self.films = {film: job for run in runs for film, job in run.films.items()}
        self.folders = [run.run.folder for run in runs]
        self.targets = {run.run.name: list(run.films) for run in runs}
        self.warnings = [warning for run in runs for warning in run.warnings]
        self._start = time.time()

    def write(self) -> None:
        """Fix the shards and seeds, and leave manifests and the resolved config for the stages."""
        for planned in self.runs:
            run = planned.run
            fixed = {"version": PLAN_VERSION, "seed": run.seed, "shards": planned.shards}
            write_if_changed(f"{run.folder}/plan.json", json.dumps(fixed, indent=1) + "\n")
            rows = [resolved_row(clip) for clip in planned.clips]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_if_changed(f"{run.folder}/clips.jsonl", lines)
            names = {model.name for model in run.models.values() if model}
            entry = {**planned.entry, "clips": f"{run.folder}/clips.jsonl"}
            entry["options"] = {**run.options, **run.overriding, "seed": run.seed}
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

        This has to come before the DAG is built. Not while another Snakemake works here: its jobs read those files.
        """
        for warning in self.warnings:
            say(f"warning: {warning}")
        if any(Path(".snakemake/locks").glob("*")):
            return
        failed = [output for job in self.jobs for output in job.outputs if read_failure(Path(output))]
        for output in failed:
            os.unlink(output)
        if failed:
            say(f"{len(failed)} items that failed the last time will be tried again")

    def film(self, folder: str, name: str) -> Job:
        """The job that makes a film. Raises UsageError for a film that is not planned."""
        path = f"{folder}/{name}.mp4"
        if path not in self.films:
            raise UsageError(f"{path} is not the film of a clip", f"planned are {', '.join([*self.films][:5])}, ...")
        return self.films[path]

    @cached_property
    def failures(self) -> dict[str, Failure]:
        """The first reason of every clip that has no film, by film."""
        found = {}
        for film, job in self.films.items():
            reasons = [failure for path in job.inputs if (failure := read_failure(Path(path)))]
            if reasons and not os.path.exists(film):
                found[film] = reasons[0]
        return found

    def summary(self) -> str:
        """What this run made and reused, and a table of what failed."""
        counts = {"made": 0, "reused": 0, "failed": 0}
        for line in self._log_lines():
            for name in counts:
                counts[name] += line.get(name, 0)
        text = f"items: {counts['made']} made, {counts['reused']} reused from the store, {counts['failed']} failed\n"
        if self.failures:
            rows = [(film, failure.stage, f"{failure.reason}: {failure.remedy}") for film, failure in self.failures.items()]
            widths = [max(len(row[column]) for row in [*rows, ("film", "stage")]) for column in (0, 1)]
            text += f"{'film':{widths[0]}}  {'stage':{widths[1]}}  reason and remedy\n"
            text += "".join(f"{film:{widths[0]}}  {stage:{widths[1]}}  {reason}\n" for film, stage, reason in rows)
        return text

    def _log_lines(self) -> Iterator[dict[str, Any]]:
        """The closing lines of the jobs that ran since this plan was made."""
        for job in [*self.jobs, *self.films.values()]:
            log = Path(job.log)
            if log.is_file() and log.stat().st_mtime >= self._start:
                for line in log.read_text(errors="replace").splitlines():
                    if line.startswith('{"event": "shard"'):
                        yield json.loads(line)


def load(config: Mapping[str, Any], workers: int) -> Plan:
    """The plan of a config. Raises UsageError for whatever in it cannot be done."""
    schema.check(config, "config", "config")
    results = config.get("results", "results").rstrip("/")
    store = config.get("store", f"{results}/store")
    models = {name: declared_model(name, entry) for name, entry in config["models"].items()}
    for model in models.values():
        check_variant(model)
    runs = [plan_run(name, config, models, f"{results}/{name}", store, workers) for name in config["runs"]]
    return Plan(runs, config["models"])


def find_stages() -> None:
    """Let jobs without an environment of their own find the stages that are installed beside this program."""
    own = str(Path(sys.executable).parent)
    if own not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([own, os.environ["PATH"]])


def check_variant(model: Model) -> None:
    variants = ALL[model.family].variants
    if model.variant not in (variants or ("",)):
        raise UsageError(
            f"model {model.name} of family {model.family} has the variant {model.variant!r}",
            f"set variant to one of {', '.join(variants)}" if variants else "leave variant out",
        )


def plan_run(
    name: str, config: Mapping[str, Any], models: Mapping[str, Model], folder: str, store: str, workers: int
) -> RunPlan:
    entry = config["runs"][name]
    fixed = read_fixed(Path(folder) / "plan.json")
    film = entry.get("name", "{clip}.mp4")
    check_template(film, f"name of run {name}")
    recipe = RECIPES[entry["recipe"]]
    run = Run(
        name=name,
        folder=folder,
        store=store,
        recipe=entry["recipe"],
        models=pick_models(name, entry, models),
        options=entry.get("options", {}),
        overriding=config.get("options", {}),
        film=film,
        seed=fixed["seed"] if fixed else secrets.randbelow(2**31),
    )
    rows, warnings = read_clips(entry["clips"], f"run {name}")
    for row in rows:
        schema.check(row, "clip", f"clip {row['id']} of run {name}")
    ids = [row["id"] for row in rows]
    settled: dict[bytes, Values] = {}
    lanes = recipe.items(resolve_clip(run, rows[0], 0, 0, settled)) if rows else {}
    shards = assign(ids, fixed["shards"] if fixed else [], workers, max(1, len(lanes) - 1))
    rank = {identity: number for number, shard in enumerate(shards) for identity in shard}
    clips = [resolve_clip(run, row, index, rank[row["id"]], settled) for index, row in enumerate(rows)]
    planned = RunPlan(run, entry, clips, shards, warnings)
    add_jobs(planned, recipe)
    return planned


def pick_models(name: str, entry: Mapping[str, Any], models: Mapping[str, Model]) -> dict[str, Model | None]:
    """The run's models by family: `model` generates, `captioner` captions and may be left out."""
    picked: dict[str, Model | None] = dict.fromkeys(RECIPES[entry["recipe"]].FAMILIES)
    for key in ("model", "captioner"):
        if key not in entry:
            continue
        if entry[key] not in models:
            raise UsageError(f"{key} of run {name} is {entry[key]!r}", f"declared models are {', '.join(models)}")
        model = models[entry[key]]
        if model.family not in picked or (model.family == "vlm") != (key == "captioner"):
            raise UsageError(
                f"{key} of run {name} is {model.name}, of family {model.family}", "name a model of another family"
            )
        picked[model.family] = model
    if missing := [family for family, model in picked.items() if model is None and family != "vlm"]:
        raise UsageError(f"run {name} has no model", f"recipe {entry['recipe']} needs one of family {missing[0]}: add model")
    return picked


def add_jobs(planned: RunPlan, recipe) -> None:
    """Group the clips' items into jobs: a shard's items of one stage (of one link) together, a film by itself."""
    run, outputs = planned.run, {}
    groups: dict[tuple[int, str], list[Item]] = {}
    for clip in planned.clips:
        for lane, items in recipe.items(clip).items():
            check_captioner(run, clip, lane, items)
            groups.setdefault((clip.rank, lane) if lane != "concat" else (clip.index, f"concat.{clip.id}"), []).extend(items)
            for item in items:
                if item.output in outputs:
                    raise UsageError(
                        f"{item.output} of run {run.name} would be made for {outputs[item.output]} and for {item.id}",
                        "use {clip} in the name template",
                    )
                outputs[item.output] = item.id
    for (rank, lane), items in groups.items():
        stage = STAGES[lane.partition(".")[0]]
        model = next((m for m in run.models.values() if m and m.name == items[0].model), None)
        if stage.name == "concat":
            film = items[0].output
            name = film.removeprefix(f"{run.folder}/").removesuffix(".mp4")
            planned.films[film] = Job(f"films/{name}", stage, run, items, None)
        else:
            planned.jobs.append(Job(f"{run.name}.{lane}.{rank:03d}", stage, run, items, model))


def check_captioner(run: Run, clip: Clip, lane: str, items: Sequence[Item]) -> None:
    if lane.startswith("caption_vlm") and run.models.get("vlm") is None and not all(i.options["prompt"] for i in items):
        raise UsageError(f"clip {clip.id} of run {run.name} has no prompt and the run no captioner", "add one of them")


def read_fixed(path: Path) -> dict[str, Any] | None:
    """What an earlier plan fixed. Raises UsageError where the file is not one of ours."""
    if not path.is_file():
        return None
    try:
        fixed = json.loads(path.read_text())
        if fixed["version"] == PLAN_VERSION and isinstance(fixed["seed"], int) and isinstance(fixed["shards"], list):
            return fixed
    except (ValueError, KeyError, TypeError):
        pass
    raise UsageError(f"{path} is not a plan of this version", "remove it to plan anew (the store keeps what was made)")


def resolved_row(clip: Clip) -> dict[str, Any]:
    """The clip with every option written out; planned again from this row, it gives the same items."""
    row: dict[str, Any] = {"id": clip.id, "video": clip.video}
    if clip.prompts:
        row["prompts"] = list(clip.prompts)
    values: dict[str, list] = {}
    for family in clip.values.values():
        for name, value in family.items():
            values.setdefault(name, []).append(value)
    for name, found in values.items():
        same = all(value == found[0] for value in found)  # dtype may differ between models: those carry it
        if same and found[0] not in (None, []) and name not in row and name != "prompt":
            row[name] = found[0]
    return row


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
