"""Make a result of a finished run again, in a folder of its own, from nothing."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import chdir
from pathlib import Path

from stages.plan.finished import CLIPS, read_config
from stages.plan.load import load
from stages.plan.resolve import Clip
from stages.plan.scores import items_of
from stages.plan.workflow import own_stages
from stages.runtime.artifacts import read_description
from stages.runtime.errors import JobError, UsageError
from stages.runtime.text import read_text

PICK = "pick.link"  # how the steps begin that pick among the takes of a link


def remake(folder: Path, result: Path, scratch: Path) -> Path:
    """Make a `result` of the run in `folder` again below `scratch`, by the stages of this checkout. Returns its path.

    Raises UsageError for a file that the run does not make, JobError if a stage fails.
    """
    config, root = read_config(folder)
    [run] = config["runs"]
    with chdir(root):
        wanted, rows = str(result.resolve()), read_text(folder / CLIPS).strip().split("\n")
        clips = load(config, 1, whole=True).runs[0].clips
        clip = next((one for one in clips if wanted in videos_of(one)), None)
        if clip is None:
            raise UsageError(f"{result} is not a result of run {run}", "give a film, or a link of a chain")
        (row,) = (row for row in map(json.loads, rows) if row["id"] == clip.row_id)
        if picks := picked_takes(clip):  # the same ones, whatever picked them, and although another one failed then
            row["picks"] = picks
        (scratch / CLIPS).write_text(f"{json.dumps(row)}\n", encoding="utf-8")
        config |= {"results": str(scratch / "results"), "store": str(scratch / "store")}
        config["runs"][run]["clips"] = str(scratch / CLIPS)
        planned = load(config, 1, whole=True)
        planned.write()
        own = own_stages(deployed=False, is_main_process=False)
        for job in planned.jobs:
            done = subprocess.run(
                own + job.command(1), shell=True, stderr=subprocess.PIPE, text=True
            )  # as the Snakefile does
            if done.returncode:
                raise JobError(f"{result} cannot be made again", done.stderr.splitlines()[-1].removeprefix("error: "))
    return scratch / "results" / result.resolve().relative_to(folder.resolve().parent)


def videos_of(clip: Clip) -> set[str]:
    """The paths of all videos that a clip is made of, its film among them."""
    outputs = [item.output for items in items_of(clip).values() for item in items]
    return {f"{output.removesuffix('.json')}.mp4" if output.endswith(".json") else output for output in outputs}


def picked_takes(clip: Clip) -> list[str]:
    """The take that each link with takes is, as LINK: TAKE. Raises ItemError for an unreadable index of a link."""
    links = {step.partition(".link")[2]: items[0].output for step, items in items_of(clip).items() if step.startswith(PICK)}
    there = {int(link): Path(index) for link, index in links.items() if os.path.isfile(index)}
    return [f"{link}: {read_description(index).fields['pick']['take']}" for link, index in there.items()]
