"""The state of a run: what is done, under way, failed and waiting, from the files in its folder alone."""

from __future__ import annotations

import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.plan.jobs import Job
from stages.plan.lock import is_held, is_of_another_machine
from stages.plan.state import read_state
from stages.runtime.errors import UsageError
from stages.runtime.items import Item
from stages.runtime.locks import LOCK
from stages.runtime.stages import stage_of
from stages.runtime.store import Store
from stages.runtime.store_cleaning import entries, keys_in
from stages.runtime.text import read_jsonl

FRESH = 120  # seconds since the last line of an unfinished log, in which a job on another machine counts as running
PAUSE = 300  # seconds without work that separate two runs; a large model takes less to load


@dataclass
class RunningJob:
    """A job that is under way.

    Attributes:
        job: its name.
        stage: the stage that it is at.
        devices: the GPUs that it has leased.
        item: the last item that it wrote of, with what is done of it: "seen-0042, 12 of 40 steps".
    """

    job: str
    stage: str
    devices: Sequence[str] = ()
    item: str = ""


@dataclass
class Status:
    """The state of a run.

    Attributes:
        is_running: whether a run of Snakemake is in the results folder, or a job wrote a moment ago.
        counts: for each stage, in the order of the work, the numbers of items that are done, running, failed and waiting.
        films: the numbers of films that are done and of all.
        per_hour: films made per hour of work, by the logs; None if they have no film that was made.
        left: seconds of work that is left, by the seconds that items of each stage took; None if no such stage is known.
        unmeasured: stages with work left of which no item was made yet, so that `left` is without them.
        store: bytes in the store, of this run and in all.
        running: the jobs under way.
        failures: the last reason of each failed item, by the item's output.
        causes: those failures that did not come with an input, which had failed before; each reason once, for the earliest
            item in the order of the work.
    """

    is_running: bool
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    films: tuple[int, int] = (0, 0)
    per_hour: float | None = None
    left: float | None = None
    unmeasured: list[str] = field(default_factory=list)
    store: tuple[int, int] = (0, 0)
    running: list[RunningJob] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    causes: dict[str, str] = field(default_factory=dict)


def status(folder: Path) -> Status:
    """The state of the run in `folder`. Raises UsageError if the folder holds no run."""
    with read_state(folder) as state:
        begun = [(job, one) for job in state.jobs if (one := running_job(job, *state.logs[job.name]))]
        results = Path(state.planned.run.folder).parent
        is_held_here = is_held(results)
        begin = modified(results / LOCK) if is_held_here else time.time() - FRESH
        since = begin if is_held_here or is_of_another_machine(results) else math.inf
        at_work = [one for job, one in begun if modified(job.log) >= since]
        found = Status(bool(at_work) or (is_held_here and bool(state.unfinished)), running=at_work)
        events = [event for _, event in state.items]
        failures = {output: event for output, (_, event) in state.failures.items()}
        found.failures = {output: event["reason"] for output, event in failures.items()}
        parts = sorted(state.planned.parts, key=lambda part: state.planned.steps.index(part.step))
        items = [(stage_of(part.step).name, item) for part in parts for item in part.items]
        found.causes = causes(items, failures)
        found.counts = counts(items, state.unfinished, found)
        films = [item.output for stage, item in items if stage == "concat"]
        found.films = sum(film not in state.unfinished for film in films), len(films)
        found.per_hour = films_per_hour([event for events, _ in state.logs.values() for event in events])
        found.left, found.unmeasured = seconds_left(found, events)
        found.store = store_bytes(Path(state.planned.run.folder), Store(Path(state.planned.run.store)))
        return found


def modified(path: str | Path) -> float:
    """The time of the last change of a file, in s since 1970; 0 if it is not there."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0


def counts(items: Iterable[tuple[str, Item]], unfinished: set[str], found: Status) -> dict[str, dict[str, int]]:
    """The numbers of items, which are in the order of the work, by stage and state. A failure is one of all that need it."""
    running, failed = Counter(one.stage for one in found.running), set(found.failures)
    totals: dict[str, dict[str, int]] = {}
    for stage, item in items:
        row = totals.setdefault(stage, dict.fromkeys(("done", "running", "failed", "waiting"), 0))
        if item.output in unfinished and not failed.isdisjoint(item.files):
            failed.add(item.output)
        state = "failed" if item.output in failed else "waiting" if item.output in unfinished else "done"
        row[state] += 1
    for stage, row in totals.items():
        row["running"] = min(running[stage], row["waiting"])
        row["waiting"] -= row["running"]
    return totals


def causes(items: Iterable[tuple[str, Item]], failures: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The reasons of failures by output, without those that came with an input; of equal reasons only the first."""
    first: dict[str, str] = {}  # outputs, by reason
    for stage, item in items:
        event = failures.get(item.output)
        if event and event.get("failed_in", stage) == stage:
            first.setdefault(event["reason"], item.output)
    return {output: reason for reason, output in first.items()}


def running_job(job: Job, events: Sequence[Mapping[str, Any]], error: str) -> RunningJob | None:
    """What a job is at, by its log and the error that ended it; None if it has not begun or has ended."""
    if error or not events or sum(event["event"] == "shard" for event in events) >= steps_asked(job):
        return None
    steps = [event["stage"] for event in events if event["event"] == "step"]
    devices = [device for event in events if event["event"] == "lease" for device in event["devices"]]
    item = ""
    for event in events:
        if event["event"] == "progress":
            item = f"{event['item']}, {event['done']} of {event['of']} {event['unit']}s"
        elif event["event"] == "item":
            item = f"after {event['item']}"
    return RunningJob(job.name, steps[-1] if steps else job.parts[0].stage.name, devices, item)


def steps_asked(job: Job) -> int:
    """The number of steps that the last run asked of a job, by its manifest: those that were current are not in it."""
    try:
        rows = [row for _, row in read_jsonl(job.manifest)]
    except (OSError, UsageError):
        return len(job.parts)
    return len({row.get("step") for row in rows})


def store_bytes(folder: Path, store: Store) -> tuple[int, int]:
    """The bytes of the store that the results in a folder were made of, and those of the whole store."""
    sizes = {entry.key: entry.bytes for entry in entries(store)}
    return sum(sizes.get(key, 0) for key in set(keys_in(folder))), sum(sizes.values())


def films_per_hour(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Films made per hour of work, by the events in logs; None without such a film."""
    films = sum(event.get("stage") == "concat" and event.get("status") == "made" for event in events)
    seconds = seconds_at_work(events)
    return 3600 * films / seconds if films and seconds else None


def seconds_at_work(events: Iterable[Mapping[str, Any]]) -> float:
    """The time in which jobs were at work, one or several at once, by the events in their logs.

    Breaks in which models are loaded count too; those of PAUSE seconds or more are between runs.
    """
    total, end = 0.0, 0.0
    for start, stop in sorted((event["time"] - event.get("seconds", 0), event["time"]) for event in events):
        if start - end < PAUSE:
            start = end
        total += max(0.0, stop - start)
        end = max(end, stop)
    return total


def seconds_left(found: Status, events: Iterable[Mapping[str, Any]]) -> tuple[float | None, list[str]]:
    """The seconds until all is done, if as many jobs go on working, and the stages that they are without.

    Stages that have made nothing yet are left out. The seconds are None if that is every stage with work left.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["status"] == "made":
            seconds[event["stage"]].append(event["seconds"])
    left = {stage: number for stage, row in found.counts.items() if (number := row["waiting"] + row["running"])}
    known = [number * fmean(seconds[stage]) for stage, number in left.items() if stage in seconds]
    unmeasured = [stage for stage in left if stage not in seconds]
    return (sum(known) / max(1, len(found.running)) if known else None), unmeasured
