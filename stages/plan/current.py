"""Which items have to be made: those whose results are not what the config asks for, and what these need.

A result counts as current by the record beside it alone (see stages/runtime/made.py): so what is planned is the same from
every working folder, after results were moved or copied, and after a job that failed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from stages.plan.resolve import Clip
from stages.runtime.artifacts import canonical
from stages.runtime.items import Item
from stages.runtime.made import Made, read_made
from stages.runtime.model import Model
from stages.runtime.options import Family
from stages.runtime.stages import STAGES


class Again:
    """Names of what is to be made again though it is current: results, jobs, runs, "all"."""

    def __init__(self, names: Iterable[str]):
        self._names = {_as_path(name): name for name in names}
        self._used: set[str] = set()

    def asks(self, output: str, *names: str) -> bool:
        if not self._names:
            return False
        found = self._names.keys() & {_as_path(output), *names}
        self._used |= found
        return bool(found)

    def unknown(self) -> list[str]:
        """The names that were asked for by none."""
        return [name for key, name in self._names.items() if key not in self._used]


def _as_path(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name)) if "/" in name else name


@dataclass(frozen=True, slots=True)
class Lineage:
    """What an item is made of: a fingerprint of the work, its own and that before it, and the users' files in it."""

    fingerprint: str
    sources: tuple[str, ...]


class Lineages:
    """Lineages of a run's items. `models` are the run's, by name, with the state of their weights."""

    def __init__(self, models: Mapping[str, tuple[Model, Sequence]]):
        self._models = {name: [model.identity, weights] for name, (model, weights) in models.items()}
        self._options: dict[str, tuple[Mapping, str]] = {}

    def of(self, item: Item, stage_name: str, family: Family, before: Mapping[str, Lineage]) -> Lineage:
        """The lineage of an item; `before` has those of the items before it, by their outputs."""
        named = [item.options.get(option.name) for option in family.of_stage(stage_name) if option.is_file]
        lines = {path: before.get(path, Lineage("", (path,))) for path in item.files}
        sources = tuple(dict.fromkeys([*chain(*(line.sources for line in lines.values())), *filter(None, named)]))
        place = {path: number for number, path in enumerate(sources)}
        inputs = [
            [name, [[lines[path].fingerprint, [place[one] for one in lines[path].sources]] for path in _as_list(value)]]
            for name, value in item.inputs.items()
        ]
        work = [
            [stage_name, STAGES[stage_name].version, family.name, family.version],
            self._models.get(item.model),
            self._options_digest(item, stage_name, family),
            [place[path] if path else None for path in named],
            inputs,
        ]
        return Lineage(hashlib.sha256(canonical(work)).hexdigest()[:32], sources)

    def _options_digest(self, item: Item, stage: str, family: Family) -> str:
        """Of the options that change the result; clip after clip without options of its own shares them."""
        last, digest = self._options.get(stage, (None, ""))
        if last is not item.options:
            changing = {option.name for option in family.of_stage(stage) if option.changes_result and not option.is_file}
            values = {name: value for name, value in item.options.items() if name in changing}
            digest = hashlib.sha256(canonical(values)).hexdigest()
            self._options[stage] = item.options, digest
        return digest


def _as_list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def stale_items(
    clip: Clip, lanes: Mapping[str, Sequence[Item]], lineages: Lineages, again: Again, whole: bool
) -> tuple[dict[str, list[Item]], list[str]]:
    """A clip's items that have to be made, by lane, with their fingerprints; all of them where `whole`.

    Beside them, what there is to say of films that are there. Lanes come in the order of the work.
    """
    order = [(lane, item) for lane, items in lanes.items() for item in items]
    known: dict[str, Lineage] = {}
    on_purpose, after = set(), set()  # outputs of items that are to be made again, and of all that come after them
    for lane, item in order:
        stage = lane.partition(".")[0]
        known[item.output] = lineages.of(item, stage, clip.values.of_stage(stage)[0], known)
        if again.asks(item.output, "all", clip.run.name, f"{clip.run.name}.{lane}.{clip.rank:03d}"):
            on_purpose.add(item.output)
        if item.output in on_purpose or not after.isdisjoint(item.files):
            after.add(item.output)
    needed, stale, remarks = set(), [], []
    for lane, item in reversed(order):
        lineage, output = known[item.output], Path(item.output)
        if not whole and lane != "concat" and item.output not in needed:
            continue
        made = read_made(output)
        if not whole and item.output not in after and is_current(output, made, lineage):
            gone = [path for path in lineage.sources if lane == "concat" and not os.path.exists(path)]
            remarks += [f"{path} is not there; {item.output}, which was made of it, stays" for path in gone]
            continue
        if lane == "concat" and made and os.path.exists(output) and output.name in made.changed(output):
            remarks.append(f"{item.output} was changed after it was made, and is made again")
        stale.append((lane, replace(item, fingerprint=lineage.fingerprint, again=item.output in on_purpose)))
        needed.update(item.files)
    found: dict[str, list[Item]] = {}
    for lane, item in reversed(stale):
        found.setdefault(lane, []).append(item)
    return found, remarks


def is_current(output: Path, made: Made | None, lineage: Lineage) -> bool:
    """Whether a result with the record `made` is there, and is the one that is asked for."""
    return (
        made is not None
        and made.fingerprint == lineage.fingerprint
        and not made.changed(output)
        and made.has_sources(lineage.sources)
    )
