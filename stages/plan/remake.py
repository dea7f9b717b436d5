"""Make a result of a finished run again, in a folder of its own, from nothing."""

from __future__ import annotations

import json
import subprocess
from contextlib import chdir
from pathlib import Path

from stages.plan.finished import CLIPS, read_config
from stages.plan.load import load
from stages.plan.scores import items_of
from stages.plan.workflow import own_stages
from stages.runtime.errors import JobError, UsageError
from stages.runtime.text import read_text


def remake(folder: Path, result: Path, scratch: Path) -> Path:
    """Make a `result` of the run in `folder` again below `scratch`, by the stages of this checkout. Returns its path.

    Raises UsageError for a file that the run does not make, JobError if a stage fails.
    """
    config, root = read_config(folder)
    [run] = config["runs"]
    with chdir(root):
        wanted, rows = str(result.resolve()), read_text(folder / CLIPS).strip().split("\n")
        makers = {
            item.output: clip.row_id
            for clip in load(config, 1, whole=True).runs[0].clips
            for items in items_of(clip).values()
            for item in items
        }
        clip = makers.get(wanted)
        if clip is None:
            raise UsageError(f"{result} is not a result of run {run}", "give a film, or a link of a chain")
        (scratch / CLIPS).write_text("".join(f"{row}\n" for row in rows if json.loads(row)["id"] == clip), encoding="utf-8")
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
