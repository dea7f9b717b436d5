"""Score films and the films of runs, and compare runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from stages.families import FAMILIES as MODEL_FAMILIES
from stages.media.options import FAMILY
from stages.runtime.calls import command_line
from stages.runtime.cli import PathType, clean_errors, refuse_beside_manifest, stage_command
from stages.runtime.errors import JobError, UsageError
from stages.runtime.items import Item, item_of_row
from stages.runtime.stages import STAGES
from stages.runtime.table import table

if TYPE_CHECKING:
    import numpy as np

    from stages.plan.scores import Row

STAGE = STAGES["score"]
FAMILIES = {FAMILY.name: FAMILY} | {name: one for name, one in MODEL_FAMILIES.items() if STAGE.name in one.stages}
MOST_ROWS = 20
NO_FILM = "it has no film"
SHOWN = (  # figures in the table of a run
    *("health.faulty_share", "motion.magnitude", "motion.smoothness", "motion.dropped_frames"),
    *("flicker.temporal", "flicker.warping_error", "seams.motion_ratio", "drift.colour", "reference.vmaf"),
)
FAULTS = ("frozen", "black", "flat", "exploding")


def score_films(films: Sequence[str], values: Mapping[str, Any]) -> None:
    """Score films and print their figures; nothing is written beside them. Raises JobError if one cannot be scored."""
    from stages.plan.scores import ENDING, read_row
    from stages.runtime.loop import Settings
    from stages.runtime.shard import attempt_items, raise_failures

    settings = Settings(**{field.name: values[field.name] for field in fields(Settings) if field.name in values})
    known = {field.name for field in fields(Settings)} | {"config"}
    given = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if name not in known and value not in (None, ())
    }
    with tempfile.TemporaryDirectory(prefix="kinemake-") as folder:
        rows = [{**given, "id": film, "film": film, "output": f"{folder}/{idx}{ENDING}"} for idx, film in enumerate(films)]
        items = [item_of_row(row, STAGE, "the command line") for row in rows]
        failures, unmade = attempt_items(STAGE, FAMILIES, items, values["config"], settings)
        if found := [read_row(item) for item in items if item.output not in unmade]:
            click.echo(figures_table(found), nl=False)
    raise_failures(failures, len(items))


def figures_table(rows: Sequence[Row]) -> str:
    """One line per figure, one column per film."""
    from stages.plan.scores import names_of

    lines = [["", *(Path(row.clip).name for row in rows)]]
    lines += [[name, *(cell(row.figures.get(name)) for row in rows)] for name in names_of(rows)]
    return table(lines, figures=True)


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


# ----------------------------------------------------------------------------------------------------------------- runs


def score_run(folder: Path, names: Sequence[str], scenes: Path | None, debug: bool = False) -> tuple[list[Row], str]:
    """Score the films of a run, as far as that is still to be done, and write the tables of the run.

    Returns a row per film, and what there is to tell. `names` are measured besides what the run asks for. Raises UsageError
    for a folder that is no run.
    """
    from stages.plan.finished import read_plan
    from stages.plan.scores import DEFAULT, SHAPES, Row, read_rows, write_tables
    from stages.score_shapes import Run, score_shapes, summary_table

    planned, root = read_plan(folder)
    own = (*planned.run.scores, *(model.name for model in planned.run.scorers))
    wanted = tuple(dict.fromkeys((*own, *names))) or DEFAULT
    others = wanted if wanted != own else ()
    if others:
        planned, root = read_plan(folder, others)
    shapes, text = Run(planned, root, scenes), ""
    items = [item for part in planned.parts if part.stage is STAGE for item in part.items]
    made = [item for item in items if os.path.isfile(item.inputs["film"])]
    make(made, folder, others, planned.run.store, root.resolve(), debug)
    rows = {row.clip: row for row in read_rows(made)}
    rows |= {item.id: Row(item.id, failed=NO_FILM) for item in items if item.id not in rows}
    if SHAPES in wanted or (not names and shapes.is_of_shapes):
        found = score_shapes(folder, shapes)
        text += f"{folder} ({found['recipe']})\n{summary_table(found['summary'])}"
        text += "".join(f"failed: {row['clip']}: {row['failed']}\n" for row in found["clips"] if row["failed"])
        for row in found["clips"]:
            name = next((name for name in rows if name == row["clip"] or name.startswith(f"{row['clip']}/")), row["clip"])
            figures = {f"{SHAPES}.{key}": float(v) for key, v in row.items() if isinstance(v, (bool, int, float))}
            known = rows.get(name, Row(name))
            rows[name] = Row(name, {**known.figures, **figures}, known.failed)
    elif not made:
        raise UsageError(f"{folder} has no film", "run snakemake first")
    listed = [rows[name] for name in rows]
    if made or text:
        write_tables(str(folder), listed)
    if made:
        films = [len({item.id for item in one}) for one in (made, items)]
        text += f"{folder}: {films[0]} of {films[1]} films\n{run_table(listed)}"
    return listed, text


def make(items: Sequence[Item], folder: Path, names: Sequence[str], store: str, root: Path, debug: bool) -> None:
    """Score films of the run in `folder` through its store, from the folder in which Snakemake ran: `root`.

    A film whose source is gone keeps the scores that it has. A film that cannot be scored gets the reason in their place.
    """
    from stages.plan.finished import read_config
    from stages.plan.scores import read_row
    from stages.runtime.loop import Settings
    from stages.runtime.result_record import read_record
    from stages.runtime.shard import attempt_items

    models = read_config(folder, names)[0]["models"]

    def placed(item: Item) -> Item:
        """The item with the paths that Snakemake's items have, so that a plan finds the same in the records.

        A film that is not what the config asks for is scored all the same, and the plan makes its scores again.
        """
        film, output = (os.path.relpath(path, root) for path in (item.inputs["film"], item.output))
        known = read_record(Path(film))
        is_planned = known and item.lineage and known.fingerprint == item.lineage.origins[0].fingerprint
        lineage = item.lineage if known and is_planned and not known.changed(Path(film)) else None
        return replace(item, inputs={**item.inputs, "film": film}, output=output, lineage=lineage)

    with chdir(root), tempfile.NamedTemporaryFile("w", suffix=".yaml") as declared:
        yaml.safe_dump({"models": models}, declared, allow_unicode=True)
        declared.flush()
        possible = [item for item in items if all(map(os.path.isfile, item.files)) or read_row(item).failed]
        if possible:
            settings = Settings(store=Path(store), device="auto", mark_failed=True, debug=debug)
            attempt_items(STAGE, FAMILIES, list(map(placed, possible)), Path(declared.name), settings)


def run_table(rows: Sequence[Row]) -> str:
    """The worst films first: what is wrong with the frames of each, and the figures that most films have."""
    scored = sorted((row for row in rows if not row.failed), key=lambda row: -(row.figures.get("health.faulty_share") or 0))
    names = [name for name in SHOWN if any(row.figures.get(name) is not None for row in scored)]
    lines = [["", *names, "faults"]]
    lines += [[row.clip, *(cell(row.figures.get(name)) for name in names), faults(row)] for row in scored[:MOST_ROWS]]
    text = table(lines, figures=True) if scored else ""
    if (more := len(scored) - MOST_ROWS) > 0:
        text += f"and {more} more: see scores.csv\n"
    return text + "".join(f"not scored: {row.clip}: {row.failed}\n" for row in rows if row.failed)


def faults(row: Row) -> str:
    """The faults of a film's frames, as text."""
    found = [(name, row.figures.get(f"health.{name}_frames"), row.figures.get(f"health.{name}_at")) for name in FAULTS]
    return ", ".join(f"{count:.0f} {name} from {at:.2f} s" for name, count, at in found if count and at is not None) or "-"


# -------------------------------------------------------------------------------------------------------------- command


def with_runs(command: click.Command) -> click.Command:
    """The command of the stage, which also takes runs, and compares them."""
    by_hand = command.callback
    assert by_hand is not None

    @wraps(by_hand)
    @clean_errors
    def main(
        film: tuple[str, ...],
        compare: bool,
        distance: bool,
        scenes: Path | None,
        output: tuple[str, ...],
        manifest: Path | None,
        **values: Any,
    ) -> None:
        folders = [Path(path).expanduser() for path in film if os.path.isdir(os.path.expanduser(path))]
        if compare or distance or folders:
            own = {name: value for name, value in values.items() if name not in ("scores", "debug", "mark_failed", "device")}
            refuse_beside_runs({**own, "manifest": manifest, **({} if compare else {"output": output})})
            if others := [path for path in film if not os.path.isdir(os.path.expanduser(path))]:
                raise UsageError(f"{others[0]} is not the folder of a run", "score films without runs and without --compare")
            if distance:
                return compare_sets(folders, values["scores"], values["debug"])
            if compare:
                return compare_runs(folders, values["scores"], scenes, output, values["debug"])
            return score_runs(folders, values["scores"], scenes, values["debug"])
        if scenes:
            raise UsageError(f"--scenes is {scenes} and no run is given", "give RESULTS/RUN, or leave it out")
        if manifest:
            refuse_beside_manifest({"film": film})
        if film and not output and not manifest:
            return score_films([os.path.expanduser(path) for path in film], values)
        if len(output) > 1:
            raise UsageError(f"{len(output)} outputs are given", "give one for all films, with {stem} in its name")
        by_hand(film=film, output=output[0] if output else None, manifest=manifest, **values)

    command.callback = main
    command.help = (
        "Measure films: faulty frames, motion, flicker, seams, drift, and likeness to a reference.\n\n"
        "FILM: a film, the index of a clip, or any video; may be repeated. Without --output the figures are printed. Or the "
        "folder RESULTS/RUN of a run: its films are scored, as far as that is still to be done, and the figures are in "
        "RUN/scores.csv and RUN/scores.json; --scores adds to what the run measures. For clips of shapes world, captions "
        "and content are scored too, into RUN/score.json; the expected content comes from the scenes.jsonl of their data "
        "set (see python -m stages.media.shapes), or from the prompts, and missing clips count as wrong."
    )
    for param in command.params:
        if param.name == "scores":
            param.type = click.STRING  # of a run it may be shapes too
        if param.name == "output" and isinstance(param, click.Option):
            param.multiple = True
            param.help = "The file to make; with --compare a .csv, .json or .md, and may be repeated."
    command.params[1:1] = [
        click.Option(
            ["--compare"],
            is_flag=True,
            help="Compare runs with the first one, clip by clip: means, differences with bootstrap intervals, wins. What is "
            "not scored yet is scored first.",
        ),
        click.Option(
            ["--distance"],
            is_flag=True,
            help="Frechet and kernel distance between the films of two runs, in the features of the models in --scores.",
        ),
        click.Option(
            ["--scenes"],
            type=PathType(),
            help="File that describes the source videos of a run on shapes world. Default: scenes.jsonl beside their folder "
            "videos/.",
        ),
    ]
    return command


def refuse_beside_runs(values: Mapping[str, Any]) -> None:
    if given := [name for name, value in values.items() if value not in (None, ())]:
        raise UsageError(f"{given[0]} is given beside a run", "leave it out: the run says how its films are scored")


def compare_runs(
    folders: Sequence[Path], names: Sequence[str], scenes: Path | None, outputs: Sequence[str], debug: bool
) -> None:
    """Compare runs with the first of them, print the comparison, and write it. Raises UsageError."""
    from stages.runtime.files import write_if_changed
    from stages.score_compare import FORMATS, Scored, as_text, names_of, report

    if len(folders) < 2:
        example = command_line("score", "--compare", "results/A", "results/B")
        raise UsageError(f"--compare is given with {len(folders)} runs", f"give two or more: {example}")
    if unknown := [path for path in outputs if Path(path).suffix not in FORMATS]:
        raise UsageError(f"output {unknown[0]} is of an unknown format", f"let it end with {', '.join(FORMATS)}")
    runs = []
    for name, folder in zip(names_of(folders), folders):
        rows, _ = score_run(folder, names, scenes, debug)
        runs.append(Scored.of(name, folder, rows))
    found = report(runs)
    click.echo(as_text(found), nl=False)
    for path in outputs:
        write_if_changed(os.path.expanduser(path), FORMATS[Path(path).suffix](found))


def compare_sets(folders: Sequence[Path], names: Sequence[str], debug: bool) -> None:
    """Print the distances of the films of two runs, in the features of each of the models `names`. Raises UsageError."""
    from stages.media.scores.sets import distance, frechet, kernel, too_few

    if len(folders) != 2 or not names:
        given = f"--distance is given with {len(folders)} runs and {len(names)} scores"
        example = command_line("score", "--distance", "results/A", "results/B", "--scores", "dinov2-base")
        raise UsageError(given, f"give two runs and a model: {example}")
    lines = [["", "model", "distance", "from", "to", "films"]]
    for name in names:
        for folder in folders:
            score_run(folder, [name], None, debug)
        one, two = (features_of(folder, name) for folder in folders)
        if warning := too_few(one, two):
            click.echo(f"warning: {name}: {warning}", err=True)
        for called, measure in (("frechet", frechet), ("kernel", kernel)):
            found = distance(measure, one, two)
            figures = (cell(figure) for figure in (found.value, found.low, found.high))
            lines.append([called, name, *figures, f"{len(one)} and {len(two)}"])
    click.echo(table(lines, figures=True), nl=False)


def features_of(folder: Path, name: str) -> np.ndarray:
    """The features that a model has found in the films of a run, float64 [N, D]. Raises UsageError for less than two."""
    import numpy as np

    from stages.plan.finished import read_plan
    from stages.runtime.artifacts import read_description

    planned, _ = read_plan(folder, [name])
    outputs = [Path(item.output) for part in planned.parts if part.stage is STAGE for item in part.items]
    found = [read_description(path).fields.get("features") for path in outputs if path.is_file()]
    rows = [features for features in found if features]
    if len(rows) < 2:
        raise UsageError(
            f"{name} has features of {len(rows)} films of {folder}", "name a model of variant clip, siglip or dinov2"
        )
    return np.array(rows, dtype=np.float64)


def score_runs(folders: Sequence[Path], names: Sequence[str], scenes: Path | None, debug: bool) -> None:
    """Score runs and print their tables. Raises JobError if a film cannot be scored."""
    failed = 0
    for folder in folders:
        rows, text = score_run(folder, names, scenes, debug)
        click.echo(text, nl=False)
        failed += sum(bool(row.failed) and row.failed != NO_FILM for row in rows)
    if failed:
        raise JobError(f"{failed} films could not be scored", "see the reasons above")


main = with_runs(stage_command(STAGE, FAMILIES))

if __name__ == "__main__":
    main()
