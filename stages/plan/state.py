"""What is on the disk of a run: its plan, which results are still to be made, and the logs of its jobs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.plan.current import Again
from stages.plan.finished import read_config
from stages.plan.jobs import Job
from stages.plan.load import load
from stages.plan.runs import RunPlan, add_jobs
from stages.plan.summary import read_log


@dataclass
class RunState:
    """The state of a run. Relative paths in it start from the working folder of `read_state`.

    Attributes:
        planned: the plan of everything that the run makes.
        unfinished: outputs that are missing, or not what the run asks for. A film that was made without a take that failed
            is finished, although the next run tries that take again.
        jobs: the jobs that may have a log: see `jobs_with_logs`.
        logs: the events of each of them and the error that ended it, by the job's name.
    """

    planned: RunPlan
    unfinished: set[str]
    jobs: list[Job]
    logs: dict[str, tuple[list[dict[str, Any]], str]]

    @property
    def items(self) -> Iterator[tuple[Job, dict[str, Any]]]:
        """The event of each item in the logs, with the job that did it."""
        for job in self.jobs:
            yield from ((job, event) for event in self.logs[job.name][0] if event["event"] == "item")

    @cached_property
    def failures(self) -> dict[str, tuple[Job, dict[str, Any]]]:
        """The last failure of each output that is still to be made: the job and the event."""
        last = {}
        for job, event in sorted(self.items, key=lambda found: found[1]["time"]):
            last[os.path.abspath(event["output"])] = job, event
        return {
            output: (job, event)
            for output, (job, event) in last.items()
            if event["status"] == "failed" and output in self.unfinished
        }


@contextmanager
def read_state(folder: Path) -> Iterator[RunState]:
    """The state of the run in `folder`, from its files alone, in a block whose working folder is that of its paths.

    Raises UsageError if the folder holds no run.
    """
    config, root = read_config(folder)
    with chdir(root):
        (everything,) = load(config, 1, whole=True).runs
        stale = replace(everything, jobs=[], names=set(), warnings=[])  # the same clips, resolved and checked once
        add_jobs(stale, Again((), failed=False), whole=False, before={}, workers=1, trainings=[])
        unfinished = {item.output for job in stale.jobs for item in job.items}
        jobs = jobs_with_logs(everything)
        yield RunState(everything, unfinished, jobs, {job.name: read_log(job.log) for job in jobs})


def jobs_with_logs(planned: RunPlan) -> list[Job]:
    """The jobs of a run, those that make its captions alone, and those of single films that were requested by name."""
    folder = planned.run.folder
    logs = Path(folder, "steps/logs/films")
    films = (f"{folder}/{log.relative_to(logs)}".removesuffix(".log") for log in logs.rglob("*.log"))
    single = [planned.films[film].only(film) for film in films if film in planned.films]
    return [*planned.jobs, *planned.caption_jobs, *single]
