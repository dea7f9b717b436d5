"""Sign films: write copies with a C2PA manifest, by a key of the user."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors
from stages.runtime.errors import KinemakeError, UsageError

FILE = PathType(exists=True, dir_okay=False)


@click.command(no_args_is_help=True)
@click.argument("films", nargs=-1, required=True, metavar="FILM...", type=FILE)
@click.option("--key", required=True, type=FILE, help="PEM file with the private key.")
@click.option("--certificates", required=True, type=FILE, help="PEM file with its certificate and those that certify it.")
@click.option("--algorithm", default="es256", show_default=True, help="Of the signature: es256, ps256, ed25519, ...")
@click.option("--output", "-o", type=PathType(file_okay=False), help="Folder of the copies. Default: FILM.signed.mp4.")
@clean_errors
def main(films: tuple[Path, ...], key: Path, certificates: Path, algorithm: str, output: Path | None, debug: bool) -> None:
    """Write a copy of each FILM that has a signed C2PA manifest, which says what made it.

    The film itself stays as it is, since a signature is another one each time. `verify` reads both. Needs the package
    c2pa-python: pip install 'kinemake[c2pa]'.
    """
    from stages.media.signature import ALGORITHMS, library

    if algorithm not in ALGORITHMS:
        raise UsageError(f"there is no algorithm {algorithm!r}", f"choose from {', '.join(ALGORITHMS)}")
    library()
    failed = False
    for film in films:
        copy = output / film.name if output else film.with_suffix(".signed.mp4")
        try:
            write_signed(film, copy, key, certificates, algorithm)
            click.echo(f"{copy}: signed")
        except KinemakeError as error:
            click.echo(f"error: {error}", err=True)
            failed = True
    sys.exit(failed)


def write_signed(film: Path, copy: Path, key: Path, certificates: Path, algorithm: str) -> None:
    """Write a signed copy of a film. Raises UsageError and ItemError for what cannot be signed."""
    from stages.media.marks import read_marks
    from stages.media.signature import read_signature, sign

    if copy.exists():
        raise UsageError(f"{copy} exists", "remove it, or give another --output")
    if (marks := read_marks(film)) is None:
        raise UsageError(f"{film} does not say that Kinemake made it", "give a film that is as Kinemake wrote it")
    if (signed := read_signature(film)) is not None:
        raise UsageError(f"{film} is already signed, by {signed.signer}", "give the film that it is a copy of")
    sign(film, copy, marks, key, certificates, algorithm)


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
