"""Check the weights of declared models on this machine, and download missing ones from the model hub."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stages.runtime.cli import DEBUG, PathType, clean_errors


@click.command(no_args_is_help=True)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--config", type=PathType(), help="Config that declares the models. Default: ./config.yaml.")
@click.option("--output", "-o", type=PathType(), help="Write the files and their digests to this file; for one MODEL only.")
@click.option("--verify", is_flag=True, help="Read every file, and compare it with the digest by which the hub names it.")
@clean_errors
def main(models: tuple[str, ...], config: Path | None, output: Path | None, verify: bool, debug: bool) -> None:
    """Check that the weights of MODEL, a name in the config, are on this machine and complete; download them if not.

    Revision, size, licence and free disk space are shown before a download. An interrupted download is resumed. Weights that
    the config declares with convert are converted too. The digests of the files are cached, so that no job has to read
    60 GB for them while it holds a GPU. A file that the hub names by its digest is not read for it.
    """
    from stages.families import FAMILIES
    from stages.runtime import weights
    from stages.runtime.errors import UsageError
    from stages.runtime.files import write_if_changed
    from stages.runtime.model import declared_models, pick_declared

    if output and len(models) > 1:
        raise UsageError(f"{len(models)} models are given and one --output", "fetch them one by one, or leave it out")
    declared = declared_models(config)
    for name in models:
        model = pick_declared(name, declared)
        record = weights.fetch(model, FAMILIES[model.family], verify)
        if output:
            write_if_changed(str(output), json.dumps(record, indent=1) + "\n")


main.params.append(DEBUG)

if __name__ == "__main__":
    main()
