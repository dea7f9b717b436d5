"""The caption sheet of a run, captions.csv: written where captions were made, edited by a person, and taken back.

A row whose prompt is another than its caption was edited. All other rows say what the run does without a sheet, and so does
a blank prompt. So a sheet that comes back unchanged makes nothing again, and an edited row makes its own clip or link again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stages.plan.resolve import Clip
from stages.plan.scores import items_of
from stages.runtime.artifacts import read_description
from stages.runtime.errors import ItemError, UsageError, shown
from stages.runtime.files import write_if_changed
from stages.runtime.items import Item
from stages.runtime.stages import stage_of
from stages.runtime.text import as_cell, read_csv, text_of_cell

SHEET = "captions.csv"  # in the folder of the run
COLUMNS = ("clip", "link", "caption", "prompt", "source")
BYTE_ORDER_MARK = "\ufeff"  # by which spreadsheet programs know UTF-8
STAGE = "caption_vlm"
GIVEN, EDITED, NOT_TAKEN = "given", "edited", "edited, not taken back"  # sources of rows; the last is only in the sheet
Edits = dict[tuple[str, int], str]  # prompt by clip and link


@dataclass(frozen=True)
class Row:
    """A row of a sheet. Only a chain has links; elsewhere the link is 1.

    `caption` is the prompt that the run has without the sheet, as far as it is known, and `prompt` the one to edit.
    """

    clip: str
    link: int
    caption: str
    prompt: str
    source: str = ""

    @property
    def place(self) -> tuple[str, int]:
        return self.clip, self.link

    @property
    def is_edited(self) -> bool:
        return bool(self.prompt.split()) and self.prompt.split() != self.caption.split()


# ---------------------------------------------------------------------------------------------------------------- taken


def read_edits(source: str | Sequence[Mapping[str, Any]], run: str, ids: Collection[str]) -> tuple[Edits, list[str]]:
    """The edited prompts of a sheet, a file or a list of rows, and warnings about it: clips unknown to the run, and no rows.

    `ids` are the clips of the run. Raises UsageError, naming the row, for a sheet that cannot be read.
    """
    rows, known = read_rows(source, run, ids), set(ids)
    edits = {row.place: row.prompt for row in rows if row.clip in known and row.is_edited}
    unknown = ", ".join(dict.fromkeys(shown(row.clip) for row in rows if row.clip not in known))
    warnings = [f"the captions of run {run} name clips that it does not have: {unknown}"] if unknown else []
    if isinstance(source, str) and not rows:
        warnings.append(f"the captions {source} of run {run} have no rows, so no prompt of it is taken")
    return edits, warnings


def read_rows(source: str | Sequence[Mapping[str, Any]], run: str, ids: Collection[str]) -> list[Row]:
    """The rows of a sheet of a run whose clips are `ids`. Raises UsageError."""
    if isinstance(source, str):
        lines = read_csv(os.path.expanduser(source))
        found = [(place, {name: text_of_cell(cell) for name, cell in cells.items()}) for place, cells in lines]
        if found and not any("prompt" in row or "caption" in row for _, row in found):  # blank columns are left out
            raise UsageError(
                f"{source} has no prompt", f"its columns are {', '.join(COLUMNS[:4])}, with their names in row 1"
            )
    else:
        found = [(f"row {number} of captions of run {run}", dict(row)) for number, row in enumerate(source, 1)]
    rows: dict[tuple[str, int], Row] = {}
    known, by_number = set(ids), numbered(ids)
    for place, cells in found:
        if "clip" not in cells:
            raise UsageError(f"{place} has no clip", f"its columns are {', '.join(COLUMNS[:4])}")
        texts = (cells.get(name, "") for name in ("caption", "prompt", "source"))
        clip = cells["clip"] if cells["clip"] in known else by_number.get(number_of(cells["clip"]), cells["clip"])
        row = Row(clip, link_of(cells.get("link", 1), place), *texts)
        if row.place in rows:
            raise UsageError(f"{place} is the second one of clip {row.clip}, link {row.link}", "remove one of them")
        rows[row.place] = row
    return list(rows.values())


def link_of(value: Any, place: str) -> int:
    """The number of a link. Raises UsageError."""
    number = number_of(str(value))
    if number < 1:
        raise UsageError(f"link of {place} is {shown(value)}", "it must be a number from 1, or empty")
    return number


def number_of(text: str) -> int:
    """The number that a text is; -1 for another text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 100 else -1


def numbered(ids: Iterable[str]) -> dict[int, str]:
    """The ids that are numbers, by their numbers: a spreadsheet program makes 7 of 0007. Equal numbers are left out."""
    found: dict[int, list[str]] = {}
    for identity in ids:
        found.setdefault(number_of(identity), []).append(identity)
    return {number: same[0] for number, same in found.items() if number >= 0 and len(same) == 1}


def rows_of(edits: Mapping[tuple[str, int], str]) -> list[dict[str, Any]]:
    """Edited prompts as rows of a config."""
    return [{"clip": clip, "link": link, "prompt": prompt} for (clip, link), prompt in edits.items()]


# -------------------------------------------------------------------------------------------------------------- written


def caption_items(steps: Mapping[str, Sequence[Item]]) -> dict[int, Item]:
    """The items of a clip that caption, by link."""
    found = [(step, item) for step, items in steps.items() if stage_of(step).name == STAGE for item in items]
    return {int(step.partition(".link")[2] or 1): item for step, item in found}


def made_row(clip: Clip, link: int, item: Item) -> Row | None:
    """The row of an item that captions, from its artifact; None if there is none, or if it has another prompt."""
    try:
        found = read_description(Path(item.output)) if os.path.isfile(item.output) else None
    except ItemError:
        return None
    if found is None or found.failure:
        return None
    prompt, raw = found.fields["prompt"], found.fields["raw"]
    if given := item.options["prompt"].strip():
        if raw or prompt != given:
            return None
        is_edited = clip.has_edited_caption(link)
        return Row(clip.id, link, "" if is_edited else prompt, prompt, EDITED if is_edited else GIVEN)
    return Row(clip.id, link, prompt, prompt, "rewritten" if "request" in found.fields else "caption") if raw else None


def write_sheet(folder: str, clips: Sequence[Clip]) -> None:
    """Write what is captioned of a run to the sheet in its folder. What a person wrote into the sheet stays.

    There is no sheet of a run all of whose prompts are given. Raises OSError; UsageError for a sheet that cannot be read.
    """
    path = f"{folder}/{SHEET}"
    first = [clip for clip in clips if clip.first_take is None]  # takes share their captions
    items = [(clip, link, item) for clip in first for link, item in caption_items(items_of(clip)).items()]
    made = {(clip.id, link): made_row(clip, link, item) for clip, link, item in items}
    # read last: a person may edit it while a run works
    before = read_rows(path, folder, [clip.id for clip in first]) if os.path.isfile(path) else []
    known = {row.place: row for row in before}
    rows = [row for place, new in made.items() if (row := merged(new, known.get(place)))]
    if before or any(row.source != GIVEN for row in rows):
        gone = [row for row in before if row.place not in made and row.is_edited]
        has_links = {clip.id for clip, link, _ in items if link > 1}
        write_if_changed(path, sheet_text([*rows, *gone], has_links))


def merged(made: Row | None, before: Row | None) -> Row | None:
    """A row of what was made, if it was, with what a person wrote into the same row `before`."""
    if before is None:
        return made
    if made is None:
        return replace(before, source=NOT_TAKEN) if before.is_edited else before
    if made.source == EDITED:
        made = replace(made, caption=before.caption)
        if before.source == EDITED and not before.is_edited:  # taken out of the sheet since the plan was made
            return before
    is_taken = made.prompt.split() == before.prompt.split()
    return made if is_taken or not before.is_edited else replace(made, prompt=before.prompt, source=NOT_TAKEN)


def sheet_text(rows: Iterable[Row], has_links: Collection[str]) -> str:
    """The text of a sheet. Only clips that have links have their numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        link = row.link if row.link > 1 or row.clip in has_links else ""
        writer.writerow([row.clip, link, as_cell(row.caption), as_cell(row.prompt), row.source])
    return BYTE_ORDER_MARK + text.getvalue()
