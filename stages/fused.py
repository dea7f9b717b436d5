"""Do several stages of a shard in one process, and keep their models in memory."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from stages.plan.families import ALL_FAMILIES
from stages.runtime.artifacts import Failure
from stages.runtime.cli import DEBUG, PathType, clean_errors, device_parameters
from stages.runtime.items import read_steps
from stages.runtime.log import log


@clean_errors
def run(manifest: Path, config: Path | None, **values: Any) -> None:
    """Run the steps of a manifest, one after the other.

    A film that fails leaves the earlier one in its place and fails the job, after the others are done, so that Snakemake
    reports it. What would read it is left out. Raises JobError.
    """
    from stages.runtime.loop import Settings
    from stages.runtime.resident import RESIDENTS
    from stages.runtime.shard import attempt_items, raise_failures

    steps = read_steps(manifest)
    settings = Settings(
        **{field.name: values[field.name] for field in fields(Settings) if field.name in values},
        mark_failed=True,
    ).with_gpus_of(item for _, items in steps for item in items)
    RESIDENTS.keeps = True
    failures: list[Failure] = []
    unmade: set[str] = set()
    for stage, items in steps:
        log("step", stage=stage.name, items=len(items))
        families = {name: family for name, family in ALL_FAMILIES.items() if stage.name in family.stages}
        possible = [item for item in items if unmade.isdisjoint(item.files)]
        marking = replace(settings, mark_failed="film" not in stage.writes)
        unmarked, failed = attempt_items(stage, families, possible, config, marking)
        failures += unmarked
        unmade |= failed if not marking.mark_failed else set()
    raise_failures(failures, sum(len(items) for _, items in steps))


main = click.Command(
    "fused",
    callback=run,
    help=f"{__doc__}\n\nRuns with `fuse: true` use it. The stages one by one give the same results. The reason of a failed "
    "item is written in the place of its output.",
    no_args_is_help=True,
    params=[
        click.Option(
            ["--manifest"],
            type=PathType(exists=True, dir_okay=False),
            required=True,
            help="File of items: one JSON object per line, with its step (a stage, or STAGE.LABEL) and the names of the "
            "options of the stage. Steps are done in the order of their first lines.",
        ),
        click.Option(["--config"], type=PathType(), help="Declares models. Default: ./config.yaml."),
        click.Option(["--store"], type=PathType(), help="Folder that caches finished items for reuse."),
        *device_parameters(),
        DEBUG,
    ],
)

if __name__ == "__main__":
    main()
