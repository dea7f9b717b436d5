"""Collect what the page of a run shows, from the files of the run alone, as plain values for JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.media.scores.figures import FIGURES
from stages.plan.captions import caption_items
from stages.plan.resolve import Clip, resolve_options
from stages.plan.runs import resolved_row
from stages.plan.scores import JSON, items_of, score_items
from stages.plan.state import RunState, read_state
from stages.runtime.artifacts import Artifact, read_description
from stages.runtime.calls import command_line, snakemake_line
from stages.runtime.canonical import canonical_json
from stages.runtime.errors import ItemError
from stages.runtime.items import Item
from stages.runtime.stages import stage_of

OWN = ("id", "video", "image", "prompts", "seed")  # keys of a clip's row that differ from clip to clip
MB = 1_000_000
SEAM = ("frame", "motion_ratio", "pixels_ratio")  # what the page shows of a seam


@dataclass
class RunPage:
    """What the page of a run shows.

    Attributes:
        folder: the folder of the run.
        values: for JSON: the run, its tables of options and of figures, and a row per film.
        posters: the video or image of which each poster is a frame, by the poster's name.
    """

    folder: Path
    values: dict[str, Any]
    posters: dict[str, str] = field(default_factory=dict)


def read_page(folder: Path) -> RunPage:
    """What the page of the run in `folder` shows. Raises UsageError if the folder holds no run."""
    with read_state(folder) as state:
        reader = _Reader(state)
        rows = [row for clip in state.planned.clips for row in reader.rows(clip)]
        rows.sort(key=lambda row: row["order"])
        run = state.planned.run
        values = {
            "run": run.name,
            "folder": os.path.relpath(run.folder),
            "recipe": run.recipe,
            "models": {family: model.name for family, model in run.models.items() if model},
            "model": run.generator.name,
            "options": reader.options,
            "figures": [{"name": name, **figures_about(name)} for name in reader.figures],
            "rows": [{name: value for name, value in row.items() if name != "order"} for row in rows],
        }
        posters = {name: os.path.abspath(path) for name, path in reader.posters.items()}
    return RunPage(folder, values, posters)


class _Reader:
    """Reads the rows of a run. Values that many rows share are in `options` and `figures`, to which rows point by index."""

    def __init__(self, state: RunState):
        self.state, self.folder = state, state.planned.run.folder
        self.options: list[dict[str, Any]] = []
        self.figures: list[str] = []
        self.posters: dict[str, str] = {}
        self._places: dict[bytes, int] = {}
        self._numbers: dict[str, int] = {}
        self._table = read_table(Path(self.folder) / JSON)
        self._errors = job_errors(state)
        self._usual: dict[str, Any] | None = None

    def rows(self, clip: Clip) -> list[dict[str, Any]]:
        """A row per film of a clip."""
        steps = items_of(clip)
        makers = {item.output: (step, item) for step, items in steps.items() for item in items}
        return [self._row(clip, film, steps, makers) for film in steps["concat"]]

    def _row(
        self, clip: Clip, film: Item, steps: Mapping[str, Sequence[Item]], makers: Mapping[str, tuple[str, Item]]
    ) -> dict[str, Any]:
        before = [makers[path] for path in ancestors(film, makers)]
        failure = self._failure(before)
        scored = [item for item in score_items(steps) if item.inputs["film"] == film.output]
        scores = [*filter(None, (described(item.output) for item in scored))]
        caption = caption_items(steps).get(1)  # the links after the first show their own
        captioned = described(caption.output) if caption else None
        index = described(film.output)
        # an unfinished film has none, and the last of its parts tells most
        decoded = [] if index else [item.output for step, item in before if stage_of(step).name == "decode"]
        parts = [*filter(None, map(described, decoded))]
        made = index or (parts[-1] if parts else None)
        records = [*(made.provenance if made else []), *(found.provenance[-1] for found in scores if found.provenance)]
        resolved = resolved_row(clip)
        if clip.has_takes:
            resolved["takes"] = 1  # this row makes this take alone
        own = {name: resolved.pop(name) for name in OWN if name in resolved}
        usual = self._usual_options(clip)
        given = {name: value for name, value in resolved.items() if name in ("takes", "picks") or usual.get(name) != value}
        row = {
            "order": (clip.index, clip.take, film.id),
            "clip": clip.row_id,
            "take": clip.take,
            "name": self._inside(film.output).removesuffix(".mp4"),
            "own": own,
            "given": given,
            "options": self._place(resolved),
            "state": self._state(film, failure),
            "failure": failure,
            "film": self._inside(film.output) if os.path.isfile(film.output) else None,
            "poster": self._poster(film.output, digest_of(index)),
            "source": self._source(next(iter(clip.sources), ""), records),
            "caption": captioned.fields.get("raw", "") if captioned else "",
            "prompts": prompts_of(index) or list(clip.prompts),
            "work": work_of(records),
            "scores": self._scores(film, scores),
            "links": self._links(steps, film, details_of(scores, "seams")),
            "drift": details_of(scores, "drift"),
            "commands": self._commands(film),
        }
        if index:
            row |= {name: index.fields.get(name) for name in ("width", "height", "num_frames", "fps")}
        return row

    def _usual_options(self, clip: Clip) -> dict[str, Any]:
        """The options of a clip that has none of its own. A file of picks leaves them to the run that takes it."""
        if self._usual is None:
            values = resolve_options(clip.run, {})
            usual = resolved_row(replace(clip, values=values))
            self._usual = {name: value for name, value in usual.items() if name not in OWN}
        return self._usual

    def _links(
        self, steps: Mapping[str, Sequence[Item]], film: Item, seams: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The links of a chain that a film is joined of, each with its takes and its seam; empty for other films."""
        made = [item for items in steps.values() for item in items if item.output in film.files]
        parts = made if film.options.get("prompts_log") else []  # only a chain logs the prompts of its parts
        cuts = dict(cut.split(": ", 1) for cut in film.options.get("cuts", []))
        by_part = {seam["part"]: {name: seam[name] for name in SEAM} for seam in seams}
        found = []
        for number, (item, name) in enumerate(zip(parts, film.options.get("names", [])[1:]), 1):
            own = name if name != os.path.basename(item.output).replace(".json", ".mp4") else ""
            row = {"link": number, "name": own, "cut": cuts.get(str(number), ""), "seam": by_part.get(name)}
            found.append({**row, "takes": self._takes(item)})
        return found

    def _takes(self, part: Item) -> list[dict[str, Any]]:
        """The takes of a link that are there. A link with takes is one of them, which was picked."""
        picked = described(part.output)
        number = picked.fields.get("pick", {}).get("take", 1) if picked else 0
        found = []
        for take, path in enumerate(part.inputs.get("clips", [part.output]), 1):
            if index := described(path):
                video = path.removesuffix(".json") + ".mp4"
                row = {"take": take, "film": self._inside(video), "poster": self._poster(video, digest_of(index))}
                row |= {"seed": index.fields.get("seed"), "prompt": index.fields.get("prompt", "")}
                row |= {"caption": index.fields.get("raw", ""), "picked": take == number}
                found.append(row)
        return found

    def _state(self, film: Item, failure: Mapping[str, Any] | None) -> str:
        if film.output not in self.state.unfinished:
            return "done"
        return "failed" if failure else "outdated" if os.path.isfile(film.output) else "waiting"

    def _failure(self, before: Sequence[tuple[str, Item]]) -> dict[str, str] | None:
        """Why a film is not made: the first failure among the items before it, or the error of the job that does one."""
        for _, item in before:
            if found := self.state.failures.get(item.output):
                job, event = found
                stage, remedy = event.get("failed_in") or event["stage"], event.get("remedy", "")
                return {"stage": stage, "reason": event["reason"], "remedy": remedy, "log": self._inside(job.log)}
        for step, item in before:
            if item.output in self._errors:
                log, error = self._errors[item.output]
                return {"stage": stage_of(step).name, "reason": error, "remedy": "", "log": self._inside(log)}
        return None

    def _source(self, path: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The video or image that a clip starts from, None without. Its path leads out of the folder of the run."""
        if not path:
            return None
        known = [
            sha
            for record in records
            for files in [record.get("files", [])]
            for name, sha in zip(files, [one for shas in record.get("inputs", {}).values() for one in shas])
            if name == path
        ]
        poster = self._poster(path, known[0] if known else "")
        return {"name": path, "file": self._inside(path) if os.path.isfile(path) else None, "poster": poster}

    def _poster(self, path: str, digest: str) -> str | None:
        """Name of the poster of a video or image, which changes with its content; None if there is no such file."""
        try:
            state = os.stat(path)
        except OSError:
            return None
        digest = digest or hashlib.sha256(f"{path} {state.st_size} {state.st_mtime_ns}".encode(errors="replace")).hexdigest()
        name = f"{digest[:20]}.jpg"
        self.posters[name] = path
        return name

    def _scores(self, film: Item, scores: Sequence[Artifact]) -> dict[int, float]:
        """The figures of a film, by their places in `figures`."""
        found = dict(self._table.get(film.id, {}))
        for one in scores:
            found |= one.fields.get("figures", {})
        places = {}
        for name, value in found.items():
            if isinstance(value, (int, float)):
                if name not in self._numbers:
                    self._numbers[name] = len(self.figures)
                    self.figures.append(name)
                places[self._numbers[name]] = value
        return places

    def _place(self, options: dict[str, Any]) -> int:
        key = canonical_json(options)
        if key not in self._places:
            self._places[key] = len(self.options)
            self.options.append(options)
        return self._places[key]

    def _commands(self, film: Item) -> list[str]:
        """Shell commands that make a film, if it is missing or outdated, and that make it once more to compare."""
        path, config = os.path.relpath(film.output), os.path.relpath(f"{self.folder}/config.yaml")
        make = snakemake_line(path, "--configfile", config, "--cores", "1")
        return [make, command_line("verify", "--remake", path)]

    def _inside(self, path: str) -> str:
        """A path relative to the folder of the run."""
        return os.path.relpath(path, self.folder)


def described(path: str) -> Artifact | None:
    """The description of a result, or None if it is missing, a failure or unreadable."""
    try:
        found = read_description(Path(path))
    except ItemError:
        return None
    return None if found.failure else found


def details_of(scores: Sequence[Artifact], group: str) -> list[dict[str, Any]]:
    """The rows that a group of scores has of the parts of a film; empty if it was not measured."""
    return next((one.fields["details"][group] for one in scores if group in one.fields.get("details", {})), [])


def digest_of(index: Artifact | None) -> str:
    return index.members.get(".mp4", {}).get("sha256", "") if index else ""


def prompts_of(index: Artifact | None) -> list[str]:
    """The prompts of the parts of a film, in order, each once."""
    parts = index.fields.get("parts", []) if index else []
    return [*dict.fromkeys(part["prompt"] for part in parts if part.get("prompt"))]


def ancestors(film: Item, makers: Mapping[str, tuple[str, Item]]) -> list[str]:
    """The outputs that a film is made of, and the film, in the order of the work."""
    needed = {film.output}
    for output, (_, item) in reversed([*makers.items()]):
        if output in needed:
            needed.update(item.files)
    return [output for output in makers if output in needed]


def job_errors(state: RunState) -> dict[str, tuple[str, str]]:
    """The log and the error of the job that ended before it made an output, by that output."""
    found: dict[str, tuple[str, str]] = {}
    for job in state.jobs:
        if error := state.logs[job.name][1]:
            found |= {output: (job.log, error) for output in job.outputs if output in state.unfinished}
    return found


def work_of(records: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """By stage: its seconds, and its peak memory in MB on the GPU, or None without one, and in main memory."""
    found: dict[str, list[float | None]] = {}
    for record in records:
        seconds, gpu, process = found.get(record["stage"], [0.0, None, 0])
        peak = record.get("peak_memory_bytes", {})
        if "gpu" in peak:
            gpu = max(gpu or 0, peak["gpu"] // MB)
        process = max(process or 0, peak.get("process", 0) // MB)
        found[record["stage"]] = [round((seconds or 0) + record.get("seconds", 0), 3), gpu, process]
    return found


def figures_about(name: str) -> dict[str, str]:
    """What is known of a figure: its unit, which direction is better, its meaning."""
    return FIGURES[name]._asdict() if name in FIGURES else {"unit": "", "better": "", "help": ""}


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """The figures in the table of a run's scores, by film; empty without one."""
    try:
        clips = json.loads(path.read_text())["clips"]
        return {row["clip"]: {name: value for name, value in row.items() if "." in name} for row in clips}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
