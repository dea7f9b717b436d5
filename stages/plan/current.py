"""Find the stale items: those whose results are not what the config asks for, and the items that these need.

Only the record beside a result decides whether it is current (see stages/runtime/result_record.py). So the plan is the same
from every working directory, after results were moved or copied, and after a job that failed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from stages.plan.families import ALL_FAMILIES
from stages.plan.jobs import fused_steps, job_name, scores_a_film
from stages.plan.resolve import Clip
from stages.runtime.errors import JobError
from stages.runtime.items import Item
from stages.runtime.key import digest_options, digest_work
from stages.runtime.lineage import Lineage, Origin
from stages.runtime.model import Model
from stages.runtime.options import Family, Implementation
from stages.runtime.result_record import ResultRecord, read_record
from stages.runtime.stages import STAGES

OUTDATED = "outdated"  # in the place of the digest of weights that a training will replace: no record has it
LOSSLESS = (".mkv",)  # files that only the next stage needs


class Again:
    """Names of results, jobs and runs to make again although they are current; "all" stands for everything.

    With `failed`, so are results that were made without something that failed.
    """

    def __init__(self, names: Iterable[str], failed: bool = True):
        self.failed = failed
        self._names = {_as_path(name): name for name in names}
        self._used: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._names)

    def requests(self, output: str, *names: str) -> bool:
        if not self._names:
            return False
        found = self._names.keys() & {_as_path(output), *names}
        self._used |= found
        return bool(found)

    def unknown(self) -> list[str]:
        """The names that matched nothing."""
        return [name for key, name in self._names.items() if key not in self._used]


def _as_path(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name)) if "/" in name else name


class Lineages:
    """Computes the lineages of a run's items. `models` are the run's, by name; those `outdated` are to be trained on."""

    def __init__(self, models: Mapping[str, Model], outdated: Collection[str] = ()):
        self._models, self._outdated = models, outdated
        self._options: dict[str, tuple[Mapping, str]] = {}
        self._digests: dict[tuple[str, str], str] = {}

    def of(self, item: Item, stage_name: str, family: Family, before: Mapping[str, Lineage]) -> Lineage:
        """The lineage of an item. `before` holds those of the earlier items, by output."""
        implementation = family.stages[stage_name]
        named = implementation.files_in(item.options)
        lines = {path: before.get(path, Lineage("", (path,))) for path in item.files}
        sources = tuple(dict.fromkeys([*chain(*(line.sources for line in lines.values())), *chain(*named.values())]))
        place = {path: number for number, path in enumerate(sources)}
        inputs = {
            name: [[lines[path].fingerprint, [place[one] for one in lines[path].sources]] for path in _as_list(value)]
            for name, value in item.inputs.items()
        }
        files = {name: [place[path] for path in paths] for name, paths in named.items()}
        work = digest_work(STAGES[stage_name], family, self._options_digest(item, implementation), files, inputs)
        own = [(item.model, stage_name)] if item.model and implementation.needs_model(item.options) else []
        weights = dict.fromkeys([*chain(*(line.weights for line in lines.values())), *own])
        weights_place = {one: number for number, one in enumerate(weights)}
        origins = [
            Origin(line.fingerprint, [place[one] for one in line.sources], [weights_place[one] for one in line.weights])
            for line in map(lines.__getitem__, item.files)
        ]
        origins += [Origin("", [place[path]], []) for path in chain(*named.values())]
        return Lineage(work[:32], sources, tuple(weights), tuple(origins))

    def weights_digests(self, lineage: Lineage) -> list[str]:
        """The current digests of the lineage's weights; "" for weights that are missing or unreadable."""
        return [self._weights_digest(name, stage) for name, stage in lineage.weights]

    def _weights_digest(self, name: str, stage: str) -> str:
        if (name, stage) not in self._digests:
            model = self._models[name]
            try:
                digest = (
                    OUTDATED if name in self._outdated else model.digest(ALL_FAMILIES[model.family].stages[stage].weights)
                )
            except (JobError, OSError):
                digest = ""
            self._digests[name, stage] = digest
        return self._digests[name, stage]

    def _options_digest(self, item: Item, implementation: Implementation) -> str:
        """Digest of the options that change the result, cached because most clips share their options."""
        last, digest = self._options.get(implementation.worker, (None, ""))
        if last is not item.options:
            digest = digest_options(implementation.options.declared, item.options)
            self._options[implementation.worker] = item.options, digest
        return digest


def _as_list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def stale_items(
    clip: Clip, steps: Mapping[str, Sequence[Item]], lineages: Lineages, again: Again, whole: bool, anew: Iterable[str] = ()
) -> tuple[dict[str, list[Item]], list[str]]:
    """The items of a clip that have to be made, by step and with fingerprints, and remarks about existing results.

    Steps are in the order of the work. With `whole`, all items are returned. Items that read a file in `anew`, which is made
    again before them, are stale too. Films and links of a chain are always checked; an intermediate step only if a stale
    item needs it.
    """
    order = [(step, item) for step, items in steps.items() for item in items]
    known: dict[str, Lineage] = {}
    fused = fused_steps(clip.run, steps) if again else []
    requested, outdated = set(), set(anew)  # outputs to make again by request, and all that depend on those
    for step, item in order:
        stage = step.partition(".")[0]
        known[item.output] = lineages.of(item, stage, family_of(clip, item, stage), known)
        if again.requests(item.output, "all", clip.run.name, job_name(clip.run, step, fused, clip.rank)):
            requested.add(item.output)
        if item.output in requested or not outdated.isdisjoint(item.files):
            outdated.add(item.output)
    needed, stale, remarks = set(), [], []
    for step, item in reversed(order):
        lineage, output = known[item.output], Path(item.output)
        is_needed = item.output in needed
        if not whole and not is_needed and item.output.startswith(f"{clip.run.folder}/steps/"):
            continue
        record = None if whole else read_record(output)
        changed = [name for name in record.changed(output) if is_needed or not name.endswith(LOSSLESS)] if record else []
        is_right = record and (record.whole or not again.failed) and is_current(record, lineage, lineages)
        if is_right and item.output not in outdated and not changed:
            gone = [path for path in lineage.sources if step == "concat" and not os.path.exists(path)]
            remarks += [f"{path} is not there; {item.output}, which was made of it, stays" for path in gone]
            continue
        edited = [path for name in changed if os.path.exists(path := output.parent / name)]
        remarks += [f"{path} was changed after it was made, and is made again" for path in edited if path.suffix == ".mp4"]
        stale.append((step, replace(item, lineage=lineage, again=item.output in requested)))
        if not scores_a_film(step, item):  # a film is always checked, and it is scored without the files beside it
            needed.update(item.files)
    found: dict[str, list[Item]] = {}
    for step, item in reversed(stale):
        found.setdefault(step, []).append(item)
    return found, remarks


def family_of(clip: Clip, item: Item, stage: str) -> Family:
    """The family that does an item of a clip. A model that scores films has no other part in the run."""
    scorers = {model.name: model for model in clip.run.scorers}
    if item.model in scorers:
        return ALL_FAMILIES[scorers[item.model].family]
    return clip.values.for_stage(stage)[0]


def is_current(record: ResultRecord, lineage: Lineage, lineages: Lineages) -> bool:
    """Whether the result with this record has the requested lineage."""
    return (
        record.fingerprint == lineage.fingerprint
        and record.has_sources(lineage.sources)
        and record.has_weights(lineages.weights_digests(lineage))
    )
