"""See that the weights of a declared model are on this machine, whole; fetch them once from the model hub."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors


@click.command(no_args_is_help=True)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--config", type=PathType(), help="Declares the models. Default: ./config.yaml.")
@click.option("--output", "-o", type=PathType(), help="Record the files and their digests here (one MODEL).")
@clean_errors
def main(models: tuple[str, ...], config: Path | None, output: Path | None, debug: bool) -> None:
    """See that the weights of MODEL, as the config calls it, are here and whole; those of a Hub id are fetched.

    Revision, size, licence and the free disk are shown first. What was interrupted goes on where it was. The digests of the
    files are remembered, so that no job reads 60 GB on a GPU's time to know what it has.
    """
    from stages.models import FAMILIES
    from stages.plan import write_if_changed
    from stages.runtime import weights
    from stages.runtime.errors import UsageError
    from stages.runtime.model import declared_models, pick_declared

    if output and len(models) > 1:
        raise UsageError(f"{len(models)} models are given and one --output", "fetch them one by one, or leave it out")
    declared = declared_models(config)
    for name in models:
        model = pick_declared(name, declared)
        record = weights.fetch(model, FAMILIES[model.family])
        if output:
            write_if_changed(str(output), json.dumps(record, indent=1) + "\n")


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
