"""The files that describe a run in its folder: plan.json, clips.jsonl and config.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.plan.captions import rows_of
from stages.plan.resolve import all_options_of
from stages.plan.runs import FIXED, RunPlan, resolved_row
from stages.plan.schema import PLAN_VERSION
from stages.runtime.options import rename_aliases


def describe(planned: RunPlan, models: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a run's description, by path: plan.json for later plans, its clips, and a config that reproduces it.

    `models` are the declarations of the config, by name.
    """
    run = planned.run
    fixed = {"version": PLAN_VERSION, "seed": run.seed, "shards": planned.shards}
    rows = [resolved_row(clip) for clip in planned.clips if clip.first_take is None]
    names = {model.name for model in run.all_models}
    options = all_options_of(run)
    given = {**rename_aliases(options, run.options), **rename_aliases(options, run.overriding)}
    entry = {**planned.entry, "clips": f"{run.folder}/clips.jsonl", "options": {"seed": run.seed, **given}}
    entry.pop("captions", None)  # the sheet will be edited further
    entry |= {"captions": rows_of(run.captions)} if run.captions else {}
    config = {
        "results": str(Path(run.folder).parent),
        "store": run.store,
        "models": {name: models[name] for name in sorted(names)},
        "runs": {run.name: entry},
    }
    return {
        f"{run.folder}/{FIXED}": json.dumps(fixed, indent=1) + "\n",
        f"{run.folder}/clips.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
        f"{run.folder}/config.yaml": yaml.safe_dump(config, allow_unicode=True, sort_keys=False),
    }
