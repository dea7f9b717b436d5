"""Summarise a run of Snakemake: counts of items, a table of failures and a table of warnings."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.plan.jobs import Job
from stages.plan.plan import Plan
from stages.runtime.table import table

MOST_WARNINGS = 20  # rows


def summarise(plan: Plan, failed: bool = False) -> str:
    """Counts of items, a table of failures and a table of warnings, from the logs of this run's jobs.

    `failed` means that Snakemake reports a failure; then jobs that ended without an error message are in the table too.
    """
    counts = {"made": 0, "reused": 0, "failed": 0}
    rows: list[tuple[str, str, str]] = []
    warned = [(run.run.name, "plan", warning) for run in plan.active for warning in run.warnings]
    others: list[tuple[str, str, Any]] = [(one.name, "plan", one) for one in plan.broken]
    others += [(one.name, "fetch", one) for one in plan.weights]
    others += [(one.rule, "train", one) for one in plan.active_trainings]
    for name, stage, one in others:
        if reason := read_log(one.log)[1] or (killed(one.log, one.output) if failed else ""):
            rows.append((name, stage, reason))
    for job in plan.active_jobs:
        events, error = read_log(job.log)
        for event in events:
            if event["event"] == "shard":
                counts = {name: count + event[name] for name, count in counts.items()}
        rows += failures(job, events, error, failed)
        warned += warnings(job, events)
    text = f"items: {counts['made']} made, {counts['reused']} reused from the store, {counts['failed']} failed\n"
    for training in plan.active_trainings:
        if any(event["event"] in ("trained", "trained_before") for event in read_log(training.log)[0]):
            text += f"training {training.name}: its model is in {training.model}\n"
    if failed and not rows:
        rows = [("all", "snakemake", "Snakemake reports an error that no job has: see its messages")]
    if rows:
        text += table([("film or job", "stage", "reason and remedy"), *rows])
    if warned := list(dict.fromkeys(warned)):
        text += table([("item or file", "stage", "warning"), *warned[:MOST_WARNINGS]])
    if (more := len(warned) - MOST_WARNINGS) > 0:
        text += f"and {more} more warnings: see steps/logs in the folders of the runs\n"
    return text


def warnings(job: Job, events: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """The table rows of what a job warned of."""
    stage, found = job.parts[0].stage.name, []
    for event in events:
        if event["event"] == "step":
            stage = event["stage"]
        elif event["event"] == "warning":
            item = event.get("item")
            name = f"{job.run.name}/{item}" if item else str(event.get("file") or event.get("model") or job.name)
            found.append((name, stage, "; ".join(event[key] for key in ("reason", "remedy") if key in event)))
    return found


def failures(job: Job, events: list[dict[str, Any]], error: str, failed: bool) -> list[tuple[str, str, str]]:
    """The table rows of a job: its failed films, and the error that ended it, or why it ended without an error message."""
    rows = []
    if job.is_last:
        films = [event for event in events if event["event"] == "item" and event["status"] == "failed"]
        rows = [(event["output"], event["failed_in"], f"{event['reason']}: {event['remedy']}") for event in films]
    if rows and any(event["event"] == "shard" for event in events):
        return rows  # its error only counts them
    reason = error or (silent_end(job, events) if failed else "")
    stages = [job.parts[0].stage.name, *(event["stage"] for event in events if event["event"] == "step")]
    return [*rows, (job.name, stages[-1], reason)] if reason else rows


def silent_end(job: Job, events: Iterable[Mapping[str, Any]]) -> str:
    """Why an unfinished job has reported no error; "" if it is done or never started."""
    if missing := [path for path, other in job.waits.items() if not os.path.isfile(other.mark)]:
        return f"it waits for {missing[0]}, which was not made"
    if os.path.isfile(job.log) and any(event["event"] == "shard" for event in events):
        return "" if os.path.isfile(job.mark) else "Snakemake does not count it as done: see its messages"
    return killed(job.log, job.mark)


def killed(log: str, output: str) -> str:
    """Why a job that has reported no error has not made its output; "" if it has, or was not started."""
    if not os.path.isfile(log) or os.path.isfile(output):
        return ""
    return f"it ended without an error message, as a killed process does: see {log}"


def read_log(path: str) -> tuple[list[dict[str, Any]], str]:
    """The events in a job's log, and the error that ended the job. Both are empty without a log."""
    if not os.path.isfile(path):
        return [], ""
    lines = Path(path).read_text(errors="replace").splitlines()
    events = [event for line in lines if line.startswith('{"event": ') and (event := parse_event(line))]
    return events, "".join(line.removeprefix("error: ") for line in lines[-1:] if line.startswith("error: "))


def parse_event(line: str) -> dict[str, Any] | None:
    """A line of a log, or None if a killed process left it incomplete."""
    try:
        return json.loads(line)
    except ValueError:
        return None
