"""The items that score the films of a run, and the tables of what they found."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.media.options import SCORES
from stages.plan.jobs import scores_a_film
from stages.plan.recipes import RECIPES
from stages.plan.resolve import Clip
from stages.plan.takes import share
from stages.runtime.artifacts import read_description
from stages.runtime.errors import ItemError
from stages.runtime.files import write_if_changed
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.text import as_cell

SHAPES = "shapes"  # of clips of shapes world: `score RUN` measures it, because it reads captions and clips too
NAMES = (*SCORES, SHAPES)
DEFAULT = SCORES  # what a run measures unless it says otherwise; a film without parts or reference lacks some of it
ENDING = ".scores.json"
CSV, JSON = "scores.csv", "scores.json"  # in the folder of the run


def items_of(clip: Clip) -> dict[str, list[Item]]:
    """The items of a clip, by step: those of its recipe, and one that scores each film by all groups in one pass.

    A model that scores belongs in a step of its own, score.NAME, whose job has a GPU.
    """
    items = RECIPES[clip.run.recipe].items
    steps = share(items(clip), items(clip.first_take)) if clip.first_take else items(clip)
    if groups := [name for name in clip.run.scores if name in SCORES]:
        # only a new look of the source, which is propagated between keyframes, shows the source frame by frame
        aligned = any(step.startswith("propagate") for step in steps)
        steps = {**steps, "score": [score_item(clip, film, groups, aligned) for film in steps["concat"]]}
    for model in clip.run.scorers:
        steps = {**steps, f"score.{model.name}": [model_item(clip, film, model) for film in steps["concat"]]}
    return steps


def model_item(clip: Clip, film: Item, model: Model) -> Item:
    """The item by which a model scores a film. It has the id of the film's."""
    output = f"{film.output.removesuffix('.mp4')}.{model.name}{ENDING}"
    return replace(clip.item_of_scorer(model, output, film=film.output, source=clip.video), id=film.id)


def score_items(steps: Mapping[str, Sequence[Item]]) -> list[Item]:
    """Of the items of a clip, by step, those that score its films."""
    return [item for step, items in steps.items() for item in items if scores_a_film(step, item)]


def score_item(clip: Clip, film: Item, groups: Sequence[str], aligned: bool) -> Item:
    """The item that scores a film. It has the id of the film's."""
    output = film.output.removesuffix(".mp4") + ENDING
    item = clip.item("score", output, film=film.output, source=clip.video, scores=groups, aligned=aligned)
    return replace(item, id=film.id)


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Row:
    """What was found of a film: its figures by name, or the reason why there are none."""

    clip: str
    figures: Mapping[str, float | None] = field(default_factory=dict)
    failed: str = ""


def read_row(item: Item) -> Row:
    """The row of an item that scores a film, as it is on the disk."""
    try:
        found = read_description(Path(item.output))
    except ItemError as error:
        return Row(item.id, failed=error.reason)
    if found.failure:
        return Row(item.id, failed=str(found.failure))
    return Row(item.id, found.fields.get("figures", {}))


def read_rows(items: Iterable[Item]) -> list[Row]:
    """A row per film, with the figures of all items that score it."""
    rows: dict[str, Row] = {}
    for item in items:
        known, found = rows.get(item.id, Row(item.id)), read_row(item)
        rows[item.id] = Row(item.id, {**known.figures, **found.figures}, known.failed or found.failed)
    return list(rows.values())


def names_of(rows: Iterable[Row]) -> list[str]:
    """The names of all figures of the rows, in order."""
    return list(dict.fromkeys(name for row in rows for name in row.figures))


def write_scores(folder: str, clips: Iterable[Clip]) -> None:
    """Write the tables of a run, of all films that are scored by now. Raises OSError."""
    items = [item for clip in clips for item in score_items(items_of(clip))]
    if rows := read_rows(item for item in items if os.path.isfile(item.output)):
        write_tables(folder, rows)


def write_tables(folder: str, rows: Sequence[Row]) -> None:
    """Write the rows of a run as scores.csv and scores.json into its folder. A figure that a film lacks is an empty cell."""
    names, text = names_of(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", *names, "failed"])
    for row in rows:
        cells = ("" if row.figures.get(name) is None else row.figures[name] for name in names)
        writer.writerow([row.clip, *cells, as_cell(row.failed)])
    write_if_changed(f"{folder}/{CSV}", text.getvalue())
    listed: list[dict[str, Any]] = [{"clip": row.clip, "failed": row.failed, **row.figures} for row in rows]
    write_if_changed(f"{folder}/{JSON}", json.dumps({"clips": listed}, indent=1, ensure_ascii=False) + "\n")
