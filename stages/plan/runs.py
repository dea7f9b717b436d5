"""A run of the config, planned: its clips, its shards, the jobs of their items."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from stages.plan import schema
from stages.plan.clips import read_clips
from stages.plan.current import Again, Lineages, stale_items
from stages.plan.families import ALL
from stages.plan.jobs import Job, weights_state
from stages.plan.names import template_fault
from stages.plan.recipes import RECIPES
from stages.plan.resolve import Clip, Run, Values, options_of, prompts_of, resolve_clip
from stages.plan.shards import assign
from stages.runtime.errors import UsageError, shown
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.stages import STAGES
from stages.runtime.text import parse_json, read_text

FIXED = "plan.json"  # what the first plan of a run fixes for all later ones, in the run's folder


@dataclass
class RunPlan:
    """A run, planned: its clips, shards and jobs."""

    run: Run
    entry: Mapping[str, Any]
    clips: list[Clip]
    shards: list[list[str]]
    warnings: list[str]
    names: set[str] = field(default_factory=set)  # of the films
    jobs: list[Job] = field(default_factory=list)
    films: dict[str, Job] = field(default_factory=dict)  # those that have to be made


@dataclass(frozen=True)
class Broken:
    """A run or a training that cannot be planned: a job that fails with the reason, so that the others go on."""

    name: str  # by which Snakemake is asked for it
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
    again: Again,
    whole: bool,
) -> RunPlan:
    """A run and what has to be made of it; all of it, whatever is there, where `whole`. Raises UsageError."""
    entry = config["runs"][name]
    fixed = read_fixed(Path(folder) / FIXED)
    film = entry.get("name", "{clip}.mp4")
    if fault := template_fault(film):
        raise UsageError(f"name of run {name} is {shown(film)}", fault)
    recipe = RECIPES[entry["recipe"]]
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
    )
    found, warnings = read_clips(entry["clips"], f"run {name}")
    rows = [{key: value for key, value in row.items() if not schema.is_left_out(key, value)} for row in found]
    for row in rows:
        schema.check(row, "clip", f"clip {row['id']} of run {name}")
        if missing := [need for need in recipe.NEEDS if need not in row and not (need == "prompt" and prompts_of(run, row))]:
            raise UsageError(f"clip {row['id']} of run {name} has no {missing[0]}", f"recipe {run.recipe} needs one")
    ids = [row["id"] for row in rows]
    settled: dict[bytes, Values] = {}
    lanes = recipe.items(resolve_clip(run, rows[0], 0, 0, settled)) if rows else {}
    shards = assign(ids, fixed["shards"] if fixed else [], workers, max(1, len(lanes) - 1))
    rank = {identity: number for number, shard in enumerate(shards) for identity in shard}
    clips = [resolve_clip(run, row, index, rank[row["id"]], settled) for index, row in enumerate(rows)]
    planned = RunPlan(run, entry, clips, shards, warnings)
    add_jobs(planned, recipe, again, whole)
    return planned


def pick_models(name: str, entry: Mapping[str, Any], models: Mapping[str, Model]) -> dict[str, Model | None]:
    """The run's models by family: `model` generates, `captioner` captions and may be left out."""
    picked: dict[str, Model | None] = dict.fromkeys(families_of(entry, models))
    for key in ("model", "captioner"):
        if key not in entry:
            continue
        if entry[key] not in models:
            raise UsageError(f"{key} of run {name} is {shown(entry[key])}", f"declared models are {', '.join(models)}")
        model = models[entry[key]]
        if model.family not in picked or ("caption_vlm" in ALL[model.family].workers) != (key == "captioner"):
            raise UsageError(
                f"{key} of run {name} is {model.name}, of family {model.family}", "name a model of another family"
            )
        picked[model.family] = model
    if missing := [name for name, model in picked.items() if model is None and "caption_vlm" not in ALL[name].workers]:
        raise UsageError(f"run {name} has no model", f"recipe {entry['recipe']} needs one of family {missing[0]}: add model")
    return picked


def families_of(entry: Mapping[str, Any], models: Mapping[str, Model]) -> list[str]:
    """The families of the run's recipe; of alternatives that of the run's model, else the first."""
    named = models[entry["model"]].family if entry.get("model") in models else ""
    needs = [(need,) if isinstance(need, str) else need for need in RECIPES[entry["recipe"]].FAMILIES]
    return [named if named in need else need[0] for need in needs]


def add_jobs(planned: RunPlan, recipe, again: Again, whole: bool) -> None:
    """Group the items that have to be made into jobs: a shard's of one stage (of one link) together, a film by itself."""
    run, outputs = planned.run, {}
    models = {model.name: (model, weights_state(model)) for model in run.models.values() if model}
    lineages = Lineages(models)
    groups: dict[tuple[int, str], list[Item]] = {}
    for clip in planned.clips:
        lanes = recipe.items(clip)
        stale, remarks = stale_items(clip, lanes, lineages, again, whole)
        planned.warnings += remarks
        for lane, items in stale.items():
            for item in items:
                group = (clip.index, f"concat.{item.output}") if lane == "concat" else (clip.rank, lane)
                groups.setdefault(group, []).append(item)
        for lane, items in lanes.items():
            check_captioner(run, clip, lane, items)
            planned.names |= {item.output for item in items if lane == "concat"}
            for item in items:
                beside = [f"{item.output.removesuffix('.mp4')}.json"] if lane == "concat" else []  # a film's description
                for output in (item.output, *beside):
                    if output in outputs:
                        raise UsageError(
                            f"{output} of run {run.name} would be made for {outputs[output]} and for {item.id}",
                            "use {clip} in the name templates, and {link} in that of the links",
                        )
                    outputs[output] = item.id
    check_outputs(planned, outputs)
    jobs = {}
    for (rank, lane), items in groups.items():
        stage = STAGES[lane.partition(".")[0]]
        if stage.name == "concat":
            film = items[0].output
            name = film.removeprefix(f"{run.folder}/").removesuffix(".mp4")
            job = planned.films[film] = Job(f"films/{name}", stage, run, items, None)
        else:
            job = Job(f"{run.name}.{lane}.{rank:03d}", stage, run, items, models.get(items[0].model, (None,))[0])
            planned.jobs.append(job)
        jobs |= dict.fromkeys(job.outputs, job)
    for job in (*planned.jobs, *planned.films.values()):
        job.needs.update(jobs[path].name for item in job.items for path in item.files if path in jobs)


def check_outputs(planned: RunPlan, outputs: Mapping[str, str]) -> None:
    """Raise UsageError for an output that is the folder of another one, and for a clip's file that is an output itself."""
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
    real_folder = cache(os.path.realpath)  # a run has few folders, and may have thousands of clips
    own = real_folder(planned.run.folder)
    for clip in planned.clips:
        for path in filter(None, (clip.video, clip.image)):
            place = os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path))
            if place.startswith(f"{own}/") and planned.run.folder + place.removeprefix(own) in outputs:
                raise UsageError(
                    f"clip {clip.id} of run {planned.run.name} reads {path}, which the run itself would write",
                    "move that file out of the results, or give the run or the clip another name",
                )


def check_captioner(run: Run, clip: Clip, lane: str, items: Sequence[Item]) -> None:
    if lane.startswith("caption_vlm") and not all(item.model or item.options["prompt"] for item in items):
        raise UsageError(f"clip {clip.id} of run {run.name} has no prompt and the run no captioner", "add one of them")


def read_fixed(path: Path) -> dict[str, Any] | None:
    """What an earlier plan fixed. Raises UsageError where the file is not one of ours."""
    if not os.path.lexists(path):
        return None
    try:
        fixed = parse_json(read_text(path), str(path))
        schema.check(fixed, "fixed", str(path))
        clips = Counter(identity for shard in fixed["shards"] for identity in shard)
        if twice := [identity for identity, count in clips.items() if count > 1]:
            raise UsageError(f"{path}.shards has clip {twice[0]} twice")
    except UsageError as error:
        remedy = "remove the file to plan anew (the store keeps what was made)"
        raise UsageError(f"{path} is not a plan of this version ({error.reason})", remedy) from None
    return fixed


def resolved_row(clip: Clip) -> dict[str, Any]:
    """The clip with every option written out; planned again from this row, it gives the same items."""
    row: dict[str, Any] = {"id": clip.id}
    row |= {name: path for name, path in (("video", clip.video), ("image", clip.image)) if path}
    if clip.prompts:
        row["prompts"] = list(clip.prompts)
    values: dict[str, list] = {}
    for family, settled in clip.values.items():
        for option in options_of(clip.run, family):
            if not option.by_recipe:
                values.setdefault(option.name, []).append(settled[option.name])
    for name, found in values.items():
        same = all(value == found[0] for value in found)  # dtype may differ between models: those carry it
        if same and found[0] not in (None, []):
            row[name] = found[0]
    return row
