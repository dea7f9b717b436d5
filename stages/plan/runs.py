"""Plan a run of the config: its clips, its shards, and the jobs of their items."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

from stages.plan import schema
from stages.plan.captions import STAGE as CAPTION
from stages.plan.captions import caption_items, read_edits
from stages.plan.clips import read_clips
from stages.plan.current import Again, Lineages, stale_items
from stages.plan.families import ALL_FAMILIES, ROLES
from stages.plan.jobs import FILM_STEPS, Job, Part, fused_steps, job_name
from stages.plan.names import is_id, template_fault, template_fields
from stages.plan.picks import unmatched_picks
from stages.plan.recipes import RECIPES
from stages.plan.resolve import Clip, ResolvedOptions, Run, is_given, options_of, preset_advice, prompts_of, resolve_clip
from stages.plan.scores import DEFAULT, NAMES, items_of
from stages.plan.shards import ShardSize, assign, reassign
from stages.plan.shots import check_options
from stages.plan.takes import takes_of, without_take
from stages.plan.trainings import TrainingJob, pending_training
from stages.runtime.errors import UsageError, did_you_mean, first_of, shown
from stages.runtime.files import file_fault
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.stages import stage_of
from stages.runtime.text import parse_json, read_text

FIXED = "plan.json"  # file in the run's folder with the seed and shards of its first plan, which later plans keep


@dataclass
class RunPlan:
    """A planned run: its clips, shards and jobs."""

    run: Run
    entry: Mapping[str, Any]
    clips: list[Clip]
    shards: list[list[str]]
    size: ShardSize
    warnings: list[str]
    names: set[str] = field(default_factory=set)  # of the films
    steps: list[str] = field(default_factory=list)  # in the order of the work
    reads: dict[str, dict[str, str]] = field(default_factory=dict)  # run -> files of it that the clips read -> real paths
    jobs: list[Job] = field(default_factory=list)
    caption_jobs: list[Job] = field(default_factory=list)  # of a fused run: those who only want its captions start them
    films: dict[str, Job] = field(default_factory=dict)  # the job of each stale one, by its path

    @property
    def parts(self) -> list[Part]:
        """The stale steps, by shard."""
        return [part for job in self.jobs for part in job.parts]

    @property
    def stages(self) -> list[str]:
        """The stages of the run, in the order of the work."""
        return list(dict.fromkeys(stage_of(step).name for step in self.steps))


@dataclass(frozen=True)
class Broken:
    """A run or a training that cannot be planned: a job that fails with the reason, so that the others go on."""

    name: str  # of its rule
    reason: str
    output: str  # never made
    log: str


def plan_run(
    name: str,
    config: Mapping[str, Any],
    models: Mapping[str, Model],
    folder: str,
    store: str,
    workers: int,
) -> RunPlan:
    """A run with its clips and shards, but without jobs: see `add_jobs`. Raises UsageError."""
    entry = config["runs"][name]
    fixed = read_fixed(Path(folder) / FIXED)
    recipe = RECIPES[entry["recipe"]]
    has_links = any(option.name == "picks" for option in recipe.OPTIONS.declared)
    found, warnings = read_clips(entry["clips"], f"run {name}", has_links)
    if isinstance(entry["clips"], Mapping) and "shots" in entry["clips"]:
        check_options({**entry.get("options", {}), **config.get("options", {})}, name)
    edits, remarks = read_edits(entry.get("captions", ()), name, [row["id"] for row in found])
    warnings += remarks
    film = entry.get("name", "{clip}.mp4")
    if fault := template_fault(film):
        raise UsageError(f"name of run {name} is {shown(film)}", fault)
    run = Run(
        name=name,
        folder=folder,
        store=store,
        recipe=entry["recipe"],
        models=pick_models(name, entry, models),
        options=entry.get("options", {}),
        overriding=config.get("options", {}),
        film=film,
        seed=fixed["seed"] if fixed else secrets.randbelow(2**31),
        resources=config.get("resources", {}),
        fuse=entry.get("fuse", recipe.FUSE) in (True, "true"),
        private=entry.get("private") in (True, "true"),
        scores=tuple(dict.fromkeys(one for one in entry.get("scores", DEFAULT) if one in NAMES)),
        scorers=pick_scorers(name, entry, models),
        captions={} if is_given(config.get("options", {}).get("prompt")) else edits,  # the command line counts first
    )
    rows = [{key: value for key, value in row.items() if not schema.is_left_out(key, value)} for row in found]
    for row in rows:
        schema.check(row, "clip", f"clip {row['id']} of run {name}")
        if missing := [need for need in recipe.NEEDS if need not in row and not (need == "prompt" and prompts_of(run, row))]:
            raise UsageError(f"clip {row['id']} of run {name} has no {missing[0]}", f"recipe {run.recipe} needs one")
    resolved: dict[bytes, ResolvedOptions] = {}
    clips = [take for index, row in enumerate(rows) for take in takes_of(resolve_clip(run, row, index, resolved))]
    steps = list(items_of(clips[0])) if clips else []
    size = ShardSize.of(steps, fused_steps(run, steps))
    shards = assign(distinct_ids_of(clips), fixed["shards"] if fixed else [], workers, size)
    rank = {identity: number for number, shard in enumerate(shards) for identity in shard}
    clips = [replace(clip, rank=rank[clip.id]) for clip in clips]
    warnings += dict.fromkeys(sentence for values in resolved.values() for sentence in preset_advice(run, values))
    return RunPlan(run, entry, clips, shards, size, warnings, steps=steps)


def distinct_ids_of(clips: Sequence[Clip]) -> list[str]:
    """The ids of clips and their takes. Raises UsageError for a clip with the id of another's take."""
    ids = [clip.id for clip in clips]
    if twice := [identity for identity, count in Counter(ids).items() if count > 1]:
        take = next(clip for clip in clips if clip.id == twice[0] and clip.first_take)
        raise UsageError(
            f"clip {take.id} of run {take.run.name} has the id of a take of {take.row_id}", "give it another id"
        )
    return ids


def in_order(runs: Mapping[str, RunPlan]) -> list[RunPlan]:
    """The runs in an order in which each follows the runs whose results it reads. Raises UsageError for a cycle."""
    real_folder = cache(os.path.realpath)
    names = {real_folder(planned.run.folder): name for name, planned in runs.items()}

    @cache
    def owner(folder: str) -> str | None:
        return next((names[above] for above in (folder, *map(str, Path(folder).parents)) if above in names), None)

    for name, planned in runs.items():
        for path in {path for clip in planned.clips for path in clip.sources}:
            place = real_place(path, real_folder)
            other = owner(os.path.dirname(place))
            if other not in (None, name):
                planned.reads.setdefault(other, {})[path] = place
    order = TopologicalSorter({name: planned.reads for name, planned in runs.items()})
    try:
        return [runs[name] for name in order.static_order()]
    except CycleError as error:
        circle = " and ".join(sorted(set(error.args[1])))
        raise UsageError(f"the runs {circle} read each other's results", "let one of them read other files") from None


def real_place(path: str, real_folder: Callable[[str], str]) -> str:
    """A file's path with the links in its folder resolved. Folders are cached, because a run may have thousands of clips."""
    return os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path))


def files_before(planned: RunPlan, earlier: Mapping[str, RunPlan]) -> dict[str, Job]:
    """The files of other runs that the clips read and that are stale, with the jobs that make them."""
    real_folder = cache(os.path.realpath)
    found: dict[str, Job] = {}
    for name, paths in planned.reads.items():
        other = earlier[name]
        makers = {}
        for job in other.jobs:
            for output in job.outputs:
                if not output.startswith(f"{other.run.folder}/steps/"):
                    video = output.removesuffix(".json").removesuffix(".mp4") + ".mp4"
                    makers[real_place(video, real_folder)] = job
        found |= {path: makers[place] for path, place in paths.items() if place in makers}
    return found


def pick_models(name: str, entry: Mapping[str, Any], models: Mapping[str, Model]) -> dict[str, Model | None]:
    """The run's models by family: one for each role in its recipe, or None if the role is left out. Raises UsageError."""
    picked: dict[str, Model | None] = {}
    families = RECIPES[entry["recipe"]].FAMILIES
    for key, role in ROLES.items():
        able = families.get(key, ())
        if key not in entry:
            if able and not role.optional:
                remedy = f"recipe {entry['recipe']} needs one of family {' or '.join(able)}: add {key}"
                raise UsageError(f"run {name} has no {key}", remedy)
            picked |= dict.fromkeys(able[:1])
            continue
        if entry[key] not in models:
            raise UsageError(f"{key} of run {name} is {shown(entry[key])}", f"declared models are {', '.join(models)}")
        model = models[entry[key]]
        if model.family not in able:
            remedy = f"name a model of another family: {' or '.join(able)}" if able else "leave it out"
            raise UsageError(f"{key} of run {name} is {model.name}, of family {model.family}", remedy)
        picked[model.family] = model
    return picked


def pick_scorers(name: str, entry: Mapping[str, Any], models: Mapping[str, Model]) -> tuple[Model, ...]:
    """The models among the scores of a run. Raises UsageError."""
    picked = [one for one in dict.fromkeys(entry.get("scores", ())) if one not in NAMES]
    able = [one.name for one in models.values() if "score" in ALL_FAMILIES[one.family].stages]
    if wrong := [one for one in picked if one not in able]:
        hint = did_you_mean(wrong[0], [*NAMES, *able])
        known = f"known are {', '.join(NAMES)} and declared models of a family that scores: {', '.join(able) or 'none'}"
        raise UsageError(f"scores of run {name} has {shown(wrong[0])}", f"{hint} {known}".strip())
    return tuple(models[one] for one in picked)


def add_jobs(
    planned: RunPlan,
    again: Again,
    whole: bool,
    before: Mapping[str, Job],
    workers: int,
    trainings: Sequence[TrainingJob],
) -> None:
    """Group the stale items into jobs: one per shard and step.

    With `whole`, all items are stale. `before` holds the stale files of other runs, with their jobs. Results of a model
    whose training has ended with other options are stale. The shards of a run are dealt anew for more `workers`, unless
    names contain the numbers of shards. Raises UsageError.
    """
    run = planned.run
    outputs: dict[str, str] = {}
    models = {model.name: model for model in run.all_models}
    pending = {name: training for name, model in models.items() if (training := pending_training(model, trainings))}
    lineages = Lineages(models, {name for name, training in pending.items() if os.path.exists(training.output)})
    stale_by_clip: dict[str, dict[str, list[Item]]] = {}
    orders: set[tuple[str, ...]] = set()
    missing: dict[str, str] = {}  # the first file that is not there, by the id of the clip's row
    captioned: set[tuple[str, int]] = set()
    for clip in planned.clips:
        steps = items_of(clip)
        orders.add(tuple(steps))
        captioned |= {(clip.id, link) for link in caption_items(steps)}
        stale, remarks = stale_items(clip, steps, lineages, again, whole, before)
        planned.warnings += remarks
        if stale:
            gone = [path for path in clip.sources if not os.path.exists(path) and path not in before]
            missing |= {clip.row_id: gone[0]} if gone else {}
            stale_by_clip[clip.id] = stale
        for step, items in steps.items():
            check_captioner(run, clip, step, items)
            planned.names |= {item.output for item in items if step == "concat"}
            for item in items:
                beside = [f"{item.output.removesuffix('.mp4')}.json"] if step == "concat" else []  # a film's description
                for output in (item.output, *beside):
                    if output in outputs and not (clip.first_take and outputs[output] == item.id):  # shared by takes
                        raise UsageError(
                            f"{output} of run {run.name} would be made for {outputs[output]} and for {item.id}",
                            "use {clip} in the name templates, and {link} in that of the links",
                        )
                    outputs[output] = item.id
    check_outputs(planned, outputs)
    planned.warnings += unmatched_picks(run.name, planned.clips)
    if unused := [f"clip {clip}, link {link}" for clip, link in run.captions if (clip, link) not in captioned]:
        planned.warnings.append(
            f"the captions of run {run.name} have prompts where nothing is captioned: {', '.join(unused)}"
        )
    if missing:
        named, clips = [*dict.fromkeys(missing.values())], len({clip.row_id for clip in planned.clips})
        planned.warnings.append(f"{len(missing)} of {clips} clips of run {run.name} will fail: no file {first_of(named)}")
    planned.steps = merge_orders(orders)
    unfinished = {identity for identity, stale in stale_by_clip.items() if not stale.keys() <= {*FILM_STEPS}}
    if not (whole or again or "rank" in template_fields(run.film)):
        planned.shards = reassign(planned.shards, unfinished, workers, planned.size)
    fused = fused_steps(run, planned.steps)
    values = {clip.id: clip.values for clip in planned.clips}
    parts: dict[str, list[Part]] = {}  # by the name of their job
    captions: dict[str, list[Part]] = {}  # of a fused run, for those who request them alone
    groups = by_shard_and_step(planned, stale_by_clip)
    for (rank, step), items in groups.items():
        part = Part(run, step, items, models.get(items[0].model), values)
        with_films = step in FILM_STEPS and (rank, "concat") in groups  # the job that makes films scores them too
        parts.setdefault(job_name(run, "concat" if with_films else step, fused, rank), []).append(part)
        first = [item for item in items if outputs.keys().isdisjoint(item.files)] if part.stage.name == CAPTION else []
        if first and step in fused:
            captions.setdefault(f"{run.name}.{CAPTION}.{rank:03d}", []).append(replace(part, items=first))
    planned.caption_jobs = [Job(name, run, steps, is_fused=len(steps) > 1) for name, steps in captions.items()]
    for name, together in parts.items():
        together.sort(key=lambda part: planned.steps.index(part.step))
        planned.jobs.append(Job(name, run, together, is_fused=len(together) > 1 or together[0].step in fused))
    planned.films = {film: job for job in planned.jobs for film in job.films}
    jobs = {output: job for job in planned.jobs for output in job.outputs}
    for job in (*planned.jobs, *planned.caption_jobs):
        job.needs.update(jobs[path].name for item in job.items for path in item.files if jobs.get(path, job) is not job)
        job.waits.update((path, before[path]) for item in job.items for path in item.files if path in before)


def merge_orders(orders: Iterable[tuple[str, ...]]) -> list[str]:
    """The steps of all clips, so that the steps of each clip stay in their order."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for steps in sorted(orders):
        sorter.add(steps[0])
        for before, step in pairwise(steps):
            sorter.add(step, before)
    return list(sorter.static_order())


def by_shard_and_step(planned: RunPlan, stale: Mapping[str, Mapping[str, list[Item]]]) -> dict[tuple[int, str], list[Item]]:
    """Group the stale items, which are by clip and step.

    An item that takes of a clip share is in the first shard that needs it, so that shards wait for earlier ones alone.
    """
    rank = {identity: number for number, shard in enumerate(planned.shards) for identity in shard}
    groups: dict[tuple[int, str], list[Item]] = {}
    grouped: set[str] = set()
    for clip in sorted(planned.clips, key=lambda clip: rank[clip.id]):
        for step, items in stale.get(clip.id, {}).items():
            own = [item for item in items if item.output not in grouped]
            if own:
                groups.setdefault((rank[clip.id], step), []).extend(own)
            grouped.update(item.output for item in own)
    return groups


def check_outputs(planned: RunPlan, outputs: Mapping[str, str]) -> None:
    """Raise UsageError for an output that is a folder of another, and for a clip that reads an output of its own run."""
    folders: dict[str, str] = {}
    for output, item in outputs.items():
        folder = os.path.dirname(output)
        while folder and folder not in folders:
            folders[folder] = item
            folder = os.path.dirname(folder)
    if both := next((folder for folder in folders if folder in outputs), ""):
        raise UsageError(
            f"{both} of run {planned.run.name} would be a file for {outputs[both]} and a folder for {folders[both]}",
            "give one of the clips another id",
        )
    real_folder = cache(os.path.realpath)
    own = real_folder(planned.run.folder)
    for clip in planned.clips:
        for path in clip.sources:
            place = real_place(path, real_folder)
            if place.startswith(f"{own}/") and planned.run.folder + place.removeprefix(own) in outputs:
                raise UsageError(
                    f"clip {clip.id} of run {planned.run.name} reads {path}, which the run itself would write",
                    "move that file out of the results, or give the run or the clip another name",
                )


def check_captioner(run: Run, clip: Clip, step: str, items: Sequence[Item]) -> None:
    if step.startswith("caption_vlm") and not all(item.model or item.options["prompt"] for item in items):
        raise UsageError(
            f"clip {clip.id} of run {run.name} has no prompt and the run no captioner",
            "give it a prompt or the run a captioner, or leave clips of a folder without one out by missing_prompt: skip",
        )


def read_fixed(path: Path) -> dict[str, Any] | None:
    """The plan.json of an earlier plan, or None. Raises UsageError for an invalid file."""
    if not os.path.lexists(path):
        return None
    if os.path.isfile(path) and (fault := file_fault(path)):
        raise UsageError(f"{path} {fault}", "make it readable, or choose other results")
    try:
        fixed = parse_json(read_text(path), str(path))
        schema.check(fixed, "fixed", str(path))
        clips = Counter(identity for shard in fixed["shards"] for identity in shard)
        if wrong := [identity for identity in clips if not is_id(without_take(identity))]:
            raise UsageError(f"{path}.shards has {shown(wrong[0])}, which is not an id")
        if twice := [identity for identity, count in clips.items() if count > 1]:
            raise UsageError(f"{path}.shards has clip {twice[0]} twice")
    except UsageError as error:
        remedy = "remove the file to plan anew (the store keeps what was made)"
        raise UsageError(f"{path} is not a plan of this version ({error.reason})", remedy) from None
    return fixed


def resolved_row(clip: Clip) -> dict[str, Any]:
    """A row with every option of the clip. Planning this row again gives the same items."""
    row: dict[str, Any] = {"id": clip.id}
    row |= {name: path for name, path in (("video", clip.video), ("image", clip.image)) if path}
    if clip.prompts:
        row["prompts"] = list(clip.prompts)
    values: dict[str, list] = {}
    for family, resolved in clip.values.items():
        for option in options_of(clip.run, family):
            if not option.set_by_recipe:
                values.setdefault(option.name, []).append(resolved[option.name])
    for name, found in values.items():
        same = all(value == found[0] for value in found)  # dtype may differ between models, whose declarations contain it
        if same and found[0] not in (None, []):
            row[name] = found[0]
    return row
