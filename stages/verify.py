"""Check that films are what their provenance says, and that the same comes out when they are made again."""

from __future__ import annotations

import math
import sys
import tempfile
from contextlib import chdir
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors
from stages.runtime.errors import ItemError, KinemakeError, UsageError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.runtime.artifacts import Artifact
    from stages.runtime.model import Model
    from stages.runtime.verification import Verification

LEAST_PSNR = {"CPU": 40.0, "GPU": 30.0}  # dB, of a film that another machine or other versions make again


def check(film: Path) -> Verification:
    """What is found about a film, or another result. Raises ItemError for a file that is no result."""
    from stages.plan.families import ALL_FAMILIES
    from stages.plan.finished import read_config, run_of
    from stages.runtime.model import declared_model, find_model
    from stages.runtime.store import Store
    from stages.runtime.verification import verify

    config: dict[str, Any] = {}
    root, film = Path.cwd(), film.absolute()
    if folder := run_of(film):
        config, root = read_config(folder)
    declared: Mapping[str, Any] = config.get("models", {})

    def find(record: Mapping[str, Any]) -> Model:
        name, source = record["model"]["name"], record["model"]["source"]
        return declared_model(name, declared[name]) if name in declared else find_model(source, None, ALL_FAMILIES)

    with chdir(root):
        store = Store(Path(config["store"])) if "store" in config else None
        return verify(film, ALL_FAMILIES, store, find)


def check_again(film: Path) -> tuple[str, bool]:
    """Make a film again from nothing and compare. Returns what was found, and whether that is as it should be.

    Raises UsageError for a film that was made by hand, JobError and ItemError if it cannot be made again.
    """
    from stages.plan.finished import run_of
    from stages.plan.remake import remake
    from stages.runtime.artifacts import read_description

    folder = run_of(film)
    if film.suffix != ".mp4" or folder is None:
        raise UsageError(f"{film} is not a film in the folder of a run", "leave --remake out")
    with tempfile.TemporaryDirectory(prefix="kinemake-") as scratch:
        again = remake(folder, film, Path(scratch))
        if film.read_bytes() == again.read_bytes():
            return "made again: equal bytes", True
        psnr, largest = compare(film, again)
        before, now = (programs(read_description(path)) for path in (film, again))
    found = f"made again: PSNR {psnr:.1f} dB, largest difference {largest} of 255"
    if before == now:
        return f"{found}, and the same machine and versions should give equal bytes", False
    least = min(LEAST_PSNR[device.partition(":")[0]] for device, _ in now)
    return f"{found}; from another machine or other versions {least:g} dB are enough", psnr >= least


def has_provenance(film: Path) -> bool:
    from stages.runtime.artifacts import index_path

    return index_path(film).is_file()


def read_statements(film: Path) -> tuple[str, bool]:
    """What a video says of itself in its metadata and in its C2PA manifest, and whether the signature fits.

    Raises ItemError for an empty file.
    """
    from stages.media.marks import read_marks, read_xmp
    from stages.media.signature import read_signature

    if film.suffix != ".mp4" or not film.is_file():
        return "", True
    if not film.stat().st_size:
        raise ItemError(f"{film} is empty", "copy it again, or make it again")
    lines, is_right = [], True
    if marks := read_marks(film):
        seeds = ", ".join(map(str, marks.seed))
        xmp = "" if marks.source in read_xmp(film) else ", which its XMP does not say"
        lines.append(f"its metadata: {marks.sentence[:-1]}, seed {seeds}, {Path(marks.source).name}{xmp}")
    try:
        signature = read_signature(film)
    except UsageError:
        signature = None  # without the library
    except ItemError as error:  # of a video that is cut off too
        return "; ".join([*lines, error.reason]), False
    if signature:
        is_right = signature.is_valid
        trust = "" if signature.is_trusted else ", for whom no authority known here vouches"
        state = "valid" if is_right else f"NOT valid ({', '.join(signature.faults)})"
        lines.append(f"its C2PA manifest: {state}, signed by {signature.signer}{trust}")
    return "; ".join(lines), is_right


def programs(film: Artifact) -> set[tuple[str, str]]:
    """The devices and the programs that made a film and everything before it, see docs/artifacts.md."""
    return {(record.get("device", "CPU"), str(record["program"])) for record in film.provenance}


def compare(film: Path, other: Path) -> tuple[float, int]:
    """PSNR in dB over all pixels of two videos, and their largest difference, 0 to 255.

    Raises ItemError if their sizes or their numbers of frames differ.
    """
    import numpy as np

    from stages.media.read import frames

    squares, largest, count = 0.0, 0, 0
    for one, two in zip_longest(frames(film), frames(other)):
        if one is None or two is None or one.rgb.shape != two.rgb.shape:
            raise ItemError(f"{film} has another size or length than what its inputs make", "compare it with a copy")
        difference = one.rgb.astype(np.int16) - two.rgb
        squares += float(np.square(difference, dtype=np.int32).sum())
        largest, count = max(largest, int(abs(difference).max())), count + difference.size
    return 10 * math.log10(255**2 * count / max(squares, 1e-9)), largest


@click.command(no_args_is_help=True)
@click.argument("films", nargs=-1, required=True, metavar="FILM...", type=PathType())
@click.option(
    "--remake", is_flag=True, help="Make each film again too, in a temporary folder and without the store, and compare."
)
@clean_errors
def main(films: tuple[Path, ...], remake: bool, debug: bool) -> None:
    """Check that each FILM of a run, or another result, is what its provenance says.

    The digests of its files, of all files that it was made of, of the weights, and of the entries in the store are compared
    with those in its JSON. What the video says of itself in its metadata is shown, and a C2PA manifest is checked, also
    where no JSON is beside it. What is not there any more, such as deleted steps, is only counted. The exit code is 1 if
    something is not as the provenance says. With --remake, equal bytes are expected from the same machine and versions, else
    a PSNR of 40 dB on a CPU and of 30 dB on a GPU.
    """
    failed = False
    for film in films:
        try:
            marks, is_signed_well = read_statements(film)
            if marks and not has_provenance(film):  # such as a signed copy, which went out into the world
                state = "right" if is_signed_well else "WRONG"
                click.echo(printable(f"{film}: {state} (there is no JSON beside it; {marks})"))
                failed = failed or not is_signed_well
                continue
            found = check(film)
            again, is_right = check_again(film) if remake else ("", True)
        except KinemakeError as error:
            click.echo(printable(f"WRONG: {error}"))
            failed = True
            continue
        is_right = is_right and is_signed_well and not found.faults
        absent = f", {len(found.absent)} not there to compare" if found.absent else ""
        summary = f"{found.checked} files, models and entries compared{absent}"
        state, remarks = "right" if is_right else "WRONG", "; ".join(filter(None, (summary, again, marks)))
        click.echo(printable(f"{film}: {state} ({remarks})"))
        for fault in found.faults:
            click.echo(printable(f"  {fault}"))
        failed = failed or not is_right
    sys.exit(failed)


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
