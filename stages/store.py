"""Show what the store holds, and clean it."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors
from stages.runtime.errors import UsageError, format_bytes
from stages.runtime.table import table

if TYPE_CHECKING:
    from stages.runtime.store import Store
    from stages.runtime.store_cleaning import Entry

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
STORE = click.argument("store", type=PathType(), metavar="STORE")


def parse_bytes(text: str) -> int:
    """Parse `"100GB"`, `"1.5 TB"` or `"0"` to a number of bytes. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([KMGT]B|)\s*", text.upper())
    if not match:
        raise UsageError(f"--to is {text!r}, which is no size", "write it like 100GB, 1.5TB or 0")
    return round(float(match[1]) * UNITS[match[2]])


def open_store(folder: Path) -> Store:
    """The store in a folder. Raises UsageError for another folder."""
    from stages.runtime.store import Store
    from stages.runtime.store_cleaning import NOTES

    if not (folder / NOTES).is_dir():
        raise UsageError(f"{folder} is not a store that a run has used", "give one such as results/store")
    return Store(folder)


def day(time: float) -> str:
    return f"{datetime.fromtimestamp(time):%Y-%m-%d}"


def row(name: str, entries: list[Entry]) -> list[str]:
    """Name, number, bytes, and the days on which the entries were last read: the first and the last one."""
    days = [day(pick(entry.time for entry in entries)) for pick in (min, max)] if entries else ["-", "-"]
    return [name, str(len(entries)), format_bytes(sum(entry.bytes for entry in entries)), *days]


@click.command(no_args_is_help=True)
@STORE
@clean_errors
def size(store: Path, debug: bool) -> None:
    """Show what each run uses of STORE, and since when: items, bytes, first and last day on which they were read."""
    from stages.runtime.store_cleaning import usage

    found = usage(open_store(store))
    rows = [row(str(run), [found.entries[key] for key in keys & found.entries.keys()]) for run, keys in found.runs.items()]
    rows += [row("used by no result", found.unused), row("all", [*found.entries.values()])]
    click.echo(table([["run", "items", "size", "from", "to"], *rows], figures=True), nl=False)


@click.command(no_args_is_help=True)
@STORE
@click.option("--to", default="0", show_default=True, metavar="SIZE", help="Stop at this size of the store, such as 100GB.")
@click.option("--forget-missing", is_flag=True, help="Remove what was used by results folders that are not there any more.")
@click.option("--dry-run", "-n", is_flag=True, help="Show what would be removed, and remove nothing.")
@clean_errors
def gc(store: Path, to: str, forget_missing: bool, dry_run: bool, debug: bool) -> None:
    """Remove items from STORE that no result uses any more: those first that were not read for the longest time.

    Results are all that lies in the folders of the runs that have used the store. While a run or a stage uses it, nothing is
    removed.
    """
    from stages.runtime.store_cleaning import clean

    before, removed = clean(open_store(store), parse_bytes(to), forget_missing, dry_run)
    kept, freed = before.bytes_of(before.used), sum(entry.bytes for entry in removed)
    left = before.bytes_of(set(before.entries)) - freed
    verb = "would be removed" if dry_run else "removed"
    click.echo(
        f"{len(removed)} items of {format_bytes(freed)} {verb}; {format_bytes(left)} left, {format_bytes(kept)} of it in use"
    )


main = click.Group("store", {"size": size, "gc": gc}, help=__doc__)
for command in (size, gc):
    command.params.append(DEBUG)

if __name__ == "__main__":
    main()
