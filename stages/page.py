"""Write the page of runs: a file to look at their films, to compare them and to choose among them."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors
from stages.runtime.errors import ItemError, KinemakeError, UsageError

if TYPE_CHECKING:
    from stages.plan.page.rows import RunPage


def write_posters(page: RunPage) -> None:
    """Write the posters of a page that are missing, and remove those of films that are no more.

    A machine that only plans lacks the libraries that read videos: there the page has the posters that are there already.
    """
    from stages.plan.page.write import posters_folder

    try:
        from stages.media.posters import write_poster
    except ImportError:
        return
    folder = posters_folder(page)
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    for name in there - page.posters.keys():
        (folder / name).unlink()

    def write(name: str) -> None:
        with suppress(ItemError):  # the page shows that film without one
            write_poster(Path(page.posters[name]), folder / name)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write, page.posters.keys() - there))


@click.command(no_args_is_help=True)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PathType())
@click.option(
    "--output", "-o", type=PathType(), help="Folder of the common page; by default that above the first of several runs."
)
@click.option("--single", type=PathType(), help="Write the page of one run as one file instead, with films up to 50 MB.")
@clean_errors
def main(runs: tuple[Path, ...], output: Path | None, single: Path | None, debug: bool) -> None:
    """Write RUN/index.html for each RUN, the folder RESULTS/NAME of a run; of several runs also a common index.html.

    The pages open in a browser without a server or a network. A page shows the films that are there, and why others are not.
    """
    from stages.plan.page.rows import read_page
    from stages.plan.page.write import write_common_page, write_page, write_single_page

    if single and len(runs) > 1:
        raise UsageError(f"--single takes one run, and here are {len(runs)}", "give it a run at a time")
    if single and output:
        raise UsageError(f"--single {single} and --output {output} are both given", "leave one of them out")
    written, failed = [], False
    for run in dict.fromkeys(runs):
        try:
            page = read_page(run)
        except KinemakeError as error:
            click.echo(f"error: {error}", err=True)
            failed = True
            continue
        write_posters(page)
        if single:
            write_single_page(single, page)
            click.echo(single)
        else:
            click.echo(write_page(page))
            written.append(run)
    if len(written) > 1 or (output and written):
        click.echo(write_common_page(output or written[0].parent, written))
    sys.exit(failed)


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
