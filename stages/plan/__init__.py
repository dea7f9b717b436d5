"""The plan of a config: config and clips become items, shards and jobs, from which the Snakefile builds its DAG.

Planning only reads: the config, lists of clips, earlier plans and the records of results. `Plan.write` is called when the
work starts.
"""

from stages.plan.jobs import CORES, DESCRIBE
from stages.plan.load import load
from stages.plan.module import EventsOnce, check_version, module_config, with_own_models
from stages.plan.page.of_plan import write_pages, write_single_pages
from stages.plan.plan import Plan
from stages.plan.scheduler import limit_timers
from stages.plan.summary import summarise
from stages.plan.workflow import (
    asks_report,
    check_files,
    count_workers,
    end_at_once_on_sigterm,
    end_on_sigterm,
    explain_devices,
    keep_places,
    keep_runs,
    model_places,
    name_user,
    own_stages,
    refuse_delete,
    run_names,
)
from stages.runtime.checkout import CHECKOUT
from stages.runtime.errors import UsageError

SNAKEFILE = str(CHECKOUT / "Snakefile")  # for a module statement

__all__ = [
    "CHECKOUT",
    "CORES",
    "DESCRIBE",
    "EventsOnce",
    "SNAKEFILE",
    "Plan",
    "UsageError",
    "asks_report",
    "check_files",
    "check_version",
    "count_workers",
    "end_at_once_on_sigterm",
    "end_on_sigterm",
    "explain_devices",
    "keep_places",
    "keep_runs",
    "limit_timers",
    "load",
    "model_places",
    "module_config",
    "name_user",
    "own_stages",
    "refuse_delete",
    "run_names",
    "summarise",
    "with_own_models",
    "write_pages",
    "write_single_pages",
]
