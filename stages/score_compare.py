"""Comparisons of runs, for `score --compare`: what differs between them on top, then each figure film by film."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.media.scores.compare import Comparison, compare_all
from stages.plan.scores import Row
from stages.runtime.errors import UsageError
from stages.runtime.table import table
from stages.runtime.text import read_jsonl, read_yaml

SEVERAL = "several"  # values of an option that differs between the clips of a run
ENTRY = ("recipe", "model", "captioner")  # of a run in the config: what makes its films


@dataclass(frozen=True)
class Scored:
    """A run with the figures of its films, by clip."""

    name: str
    folder: Path
    figures: Mapping[str, Mapping[str, float | None]]

    @classmethod
    def of(cls, name: str, folder: Path, rows: Iterable[Row]) -> Scored:
        return cls(name, folder, {row.clip: row.figures for row in rows if row.figures})


@dataclass(frozen=True)
class Report:
    """Runs, the first of which the others are compared with."""

    runs: Sequence[str]
    options: Mapping[str, Sequence[str]]  # that differ, with the value in each run
    comparisons: Mapping[str, Sequence[Comparison]]  # by the name of the other run
    alone: Mapping[str, Sequence[str]]  # clips that not all runs have, by run


def report(runs: Sequence[Scored]) -> Report:
    """Compare all runs with the first one. Raises UsageError for runs that have no film in common."""
    first, *others = runs
    for run in others:
        if not first.figures.keys() & run.figures.keys():
            raise UsageError(
                f"{first.folder} and {run.folder} have no scored clip in common", "compare runs of the same clips"
            )
    common = set.intersection(*({*run.figures} for run in runs))
    alone = {run.name: [clip for clip in run.figures if clip not in common] for run in runs}
    return Report(
        [run.name for run in runs],
        different_options(runs),
        {run.name: compare_all(first.figures, run.figures) for run in others},
        {name: clips for name, clips in alone.items() if clips},
    )


def names_of(folders: Sequence[Path]) -> list[str]:
    """Names of runs: those of their folders, or their paths where names are equal."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def different_options(runs: Sequence[Scored]) -> dict[str, list[str]]:
    """The recipe, models and options that differ between runs, for the clips that all have; the value in each run."""
    settings = [settings_of(run.folder) for run in runs]
    shared = set.intersection(*({*clips} for clips in settings))
    names = dict.fromkeys(name for clips in settings for clip in sorted(shared) for name in clips[clip])
    found = {}
    for name in names:
        if any(clips[clip].get(name) != settings[0][clip].get(name) for clips in settings for clip in shared):
            found[name] = [one_value(clips[clip].get(name) for clip in sorted(shared)) for clips in settings]
    return found


def settings_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What each clip of a run was made of, by id: recipe and models, and the inputs and options in clips.jsonl."""
    (entry,) = read_yaml(folder / "config.yaml")["runs"].values()
    of_run = {name: entry[name] for name in ENTRY if name in entry}
    rows = [row for _, row in read_jsonl(folder / "clips.jsonl")]
    return {row["id"]: {**of_run, **{name: value for name, value in row.items() if name != "id"}} for row in rows}


def one_value(values: Iterable[Any]) -> str:
    texts = {"-" if value is None else str(value) for value in values}
    return texts.pop() if len(texts) == 1 else SEVERAL


# -------------------------------------------------------------------------------------------------------------- formats


def figure_rows(found: Report, other: str) -> list[list[str]]:
    """The table of one comparison: a line per figure that differs. A star: the interval of the difference leaves out 0."""
    lines = [["figure", "films", found.runs[0], other, "difference", "95 % interval", "better", "wins", "ties", "losses"]]
    for one in (one for one in found.comparisons[other] if one.ties < one.films):
        interval = "-" if one.low is None else f"{one.low:+.4g} to {one.high:+.4g}"
        lines.append(
            [
                *(one.figure, str(one.films), f"{one.first:.4g}", f"{one.second:.4g}"),
                *(f"{one.difference:+.4g}{'*' if one.is_clear else ''}", interval, one.better or "-"),
                *(str(one.wins), str(one.ties), str(one.losses)),
            ]
        )
    return lines


def remarks(found: Report) -> list[str]:
    """What the tables leave out."""
    equal = {
        other: [one.figure for one in comparisons if one.ties == one.films]
        for other, comparisons in found.comparisons.items()
    }
    return [
        *(
            f"equal in all films of {found.runs[0]} and {name}: {', '.join(figures)}"
            for name, figures in equal.items()
            if figures
        ),
        *(f"only in {name}: {', '.join(clips)}" for name, clips in found.alone.items()),
    ]


def as_text(found: Report) -> str:
    text = table([["option", *found.runs], *([name, *values] for name, values in found.options.items())])
    for other in found.comparisons:
        text += "\n" + table(figure_rows(found, other), figures=True)
    return text + "".join(f"{line}\n" for line in remarks(found))


def as_markdown(found: Report) -> str:
    parts = [markdown_table([["option", *found.runs], *([name, *values] for name, values in found.options.items())])]
    parts += [markdown_table(figure_rows(found, other)) for other in found.comparisons]
    parts += [
        "A star marks a difference whose 95 % bootstrap interval leaves out 0. Wins are films in which the second run is "
        "better, or higher where neither is better.\n"
    ]
    return "\n".join([*parts, *(f"- {line}\n" for line in remarks(found))])


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]]) + "\n"


def as_csv(found: Report) -> str:
    text = io.StringIO()
    fields = [*Comparison.__dataclass_fields__]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["first_run", "second_run", *fields])
    for other, comparisons in found.comparisons.items():
        writer.writerows([found.runs[0], other, *asdict(one).values()] for one in comparisons)
    return text.getvalue()


def as_json(found: Report) -> str:
    content = {
        "runs": found.runs,
        "options": found.options,
        "comparisons": {other: [asdict(one) for one in comparisons] for other, comparisons in found.comparisons.items()},
        "only_in": found.alone,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Report], str]] = {".csv": as_csv, ".json": as_json, ".md": as_markdown}
