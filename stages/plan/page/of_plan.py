"""Write the pages of a plan's runs: at the end of a run of Snakemake, and for its report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stages.plan.finished import CLIPS
from stages.plan.page.write import DATA, FOLDER, INDEX, write_common_page
from stages.plan.plan import Plan
from stages.runtime.code import PACKAGE
from stages.runtime.errors import UsageError

REPORT = "report.html"  # the page of a run as one file


def write_pages(plan: Plan) -> str:
    """Write the pages of the runs that had work, and the common page of all runs. Returns a line about each that is not
    written, and one about the page to open.
    """
    lines = []
    for planned in plan.worked:
        if fault := run_page(planned.run.folder):  # the films are there, whatever becomes of the page
            lines.append(f"warning: the page of {planned.run.folder} is not written: {fault}")
    runs = [Path(planned.run.folder) for planned in plan.runs] if plan.worked else []
    runs = [run for run in runs if (run / FOLDER / DATA).is_file()]
    try:
        if runs:
            lines.append(f"page: {write_common_page(plan.results, runs) if len(runs) > 1 else runs[0] / INDEX}")
    except OSError as error:
        lines.append(f"warning: the page of {plan.results} is not written: {error}")
    return "\n".join(lines)


def write_single_pages(plan: Plan) -> dict[str, str]:
    """Write the page of each run that is there as one file. Returns their paths, by the run's name. Raises UsageError."""
    pages = {}
    for planned in plan.runs:
        folder = planned.run.folder
        if os.path.isfile(f"{folder}/{CLIPS}"):
            pages[planned.run.name] = path = f"{folder}/{FOLDER}/{REPORT}"
            if fault := run_page(folder, "--single", path):
                raise UsageError(f"the page of {folder} for the report is not written ({fault})", "run without --report")
    return pages


def run_page(*arguments: str) -> str:
    """Run the command `page` of this code in a process of its own, which may use more libraries than a plan has.

    Returns what went wrong, or "".
    """
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "stages.page", *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, errors="replace")
    lines = done.stderr.splitlines() or [f"it ended with code {done.returncode}"]
    return lines[-1].removeprefix("error: ") if done.returncode else ""
