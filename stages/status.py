"""Show how far a run is."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors
from stages.runtime.errors import KinemakeError, format_bytes, printable
from stages.runtime.table import table

if TYPE_CHECKING:
    from stages.plan.status import Status

WIDTH = 79  # columns of a line
MOST_FAILURES = 10


def shown_time(seconds: float) -> str:
    """A time as text: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def lines(run: Path, found: Status) -> list[str]:
    """The state of a run as lines of at most 79 columns."""
    done, films = found.films
    text = [f"{run}: {done} of {films} films, {'running' if found.is_running else 'no run is at work'}"]
    states = ("done", "running", "failed", "waiting")
    rows = [["", *states], *([stage, *(str(row[state]) for state in states)] for stage, row in found.counts.items())]
    text += table(rows, figures=True).splitlines()
    if found.per_hour:
        text.append(f"{found.per_hour:.{0 if found.per_hour >= 10 else 1}f} films per hour")
    if found.is_running and found.left is not None:
        text.append(f"about {shown_time(found.left)} left{left_of(found)}")
    text.append("store: {} of this run, {} in all".format(*map(format_bytes, found.store)))
    for one in found.running:
        on = f" on {', '.join(one.devices)}" if one.devices else ""
        text.append(f"{one.job}{on}: {one.stage} {one.item}".rstrip())
    failures = list(found.causes.items())
    text += [f"failed: {os.path.relpath(output, run)}: {reason}" for output, reason in failures[:MOST_FAILURES]]
    if len(failures) > MOST_FAILURES:
        text.append(f"and {len(failures) - MOST_FAILURES} more failures: see steps/logs")
    return [line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in map(printable, text)]


def left_of(found: Status) -> str:
    """The stages that the time left is of, and those of which none is known yet; "" if it is of all that is left."""
    if not found.unmeasured:
        return ""
    left = [stage for stage, row in found.counts.items() if row["waiting"] or row["running"]]
    known = ", ".join(stage for stage in left if stage not in found.unmeasured)
    return f" of {known}; not known yet: {', '.join(found.unmeasured)}"


@click.command(no_args_is_help=True)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PathType())
@click.option("--watch", is_flag=True, help="Show it again every few seconds, until no run is at work or Ctrl-C.")
@click.option("--every", default=5.0, show_default=True, type=click.FloatRange(0.1), help="Seconds between two times.")
@clean_errors
def main(runs: tuple[Path, ...], watch: bool, every: float, debug: bool) -> None:
    """Show how far each RUN, the folder RESULTS/NAME of a run, is.

    Per stage: the items that are done, running, failed and waiting. It reads files alone, those of the run and of its
    models, so it works on another machine that sees them, and after the run has ended.
    """
    from stages.plan.status import status

    with suppress(KeyboardInterrupt):
        while True:
            start, found, faults = time.monotonic(), {}, []
            for run in runs:
                try:
                    found[run] = status(run)
                except KinemakeError as error:
                    faults.append(f"error: {error}")
            if watch:
                click.clear()
            click.echo("\n".join(line for run, one in found.items() for line in lines(run, one)), nl=bool(found))
            for fault in faults:
                click.echo(fault, err=True)
            if not watch or not any(one.is_running for one in found.values()):
                sys.exit(bool(faults))
            time.sleep(max(every, time.monotonic() - start))


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
