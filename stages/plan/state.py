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
        unfinished: outputs that are missing, or not what the run asks for.
        logs: the events of each job and the error that ended it, by the job's name.
    """

    planned: RunPlan
    unfinished: set[str]
    logs: dict[str, tuple[list[dict[str, Any]], str]]

    @property
    def items(self) -> Iterator[tuple[Job, dict[str, Any]]]:
        """The event of each item in the logs, with the job that did it."""
        for job in self.planned.jobs:
            yield from ((job, event) for event in self.logs[job.name][0] if event["event"] == "item")

    @cached_property
    def failures(self) -> dict[str, tuple[Job, dict[str, Any]]]:
        """The last failure of each output that is still to be made: the job and the event."""
        failed, done = {}, set()
        for job, event in self.items:
            output = os.path.abspath(event["output"])
            if event["status"] == "failed":
                failed[output] = job, event
            else:
                done.add(output)
        return {output: found for output, found in failed.items() if output in self.unfinished - done}


@contextmanager
def read_state(folder: Path) -> Iterator[RunState]:
    """The state of the run in `folder`, from its files alone, in a block whose working folder is that of its paths.

    Raises UsageError if the folder holds no run.
    """
    config, root = read_config(folder)
    with chdir(root):
        (everything,) = load(config, 1, whole=True).runs
        stale = replace(everything, jobs=[], names=set(), warnings=[])  # the same clips, resolved and checked once
        add_jobs(stale, Again(()), whole=False, before={}, workers=1, trainings=[])
        unfinished = {item.output for job in stale.jobs for item in job.items}
        yield RunState(everything, unfinished, {job.name: read_log(job.log) for job in everything.jobs})
