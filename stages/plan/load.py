"""Build the plan of a config."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.plan import schema
from stages.plan.current import Again
from stages.plan.families import ALL_FAMILIES, ROLES
from stages.plan.older import with_old_configs
from stages.plan.places import check_places
from stages.plan.plan import Plan
from stages.plan.runs import Broken, RunPlan, add_jobs, files_before, in_order, plan_run
from stages.plan.trainings import TrainingJob, pending_training, plan_training, settings_to_come
from stages.runtime.errors import JobError, UsageError, shown
from stages.runtime.model import SETTINGS, Model, check_variant, complete_model, declared_model
from stages.runtime.text import check_values


def load(config: Mapping[str, Any], workers: int, whole: bool = False) -> Plan:
    """The plan of a config: its stale jobs, or all its jobs with `whole`.

    `workers` is the number of jobs that run at once. Runs and trainings that cannot be planned are in the plan's `broken`.
    Raises UsageError if the config as a whole is wrong, or if nothing of it can be planned.
    """
    check_values(config, "the config")
    config, remarks, faulty_configs = with_old_configs(config)
    schema.check(config, "config", "config")
    results = _folder(config.get("results", "results"))
    store = _folder(config.get("store", f"{results}/store"))
    check_places(results, store, config["runs"])
    again = Again(config.get("again", ()))
    trainings, faulty_trainings = load_trainings(config.get("trainings", {}), results)
    runs, faulty_runs = load_runs(config, results, store, workers, again, whole, trainings)
    faulty_runs |= faulty_configs
    errors = [*faulty_runs.values(), *faulty_trainings.values()]
    if errors and not runs and not trainings:
        raise errors[0]
    if not errors and (unknown := again.unknown()):
        raise UsageError(
            f"again names {shown(unknown[0])}, which no run makes", "name a result with its folders, a job, a run, or all"
        )
    for run in runs:
        run.warnings += remarks.get(run.run.name, [])
    broken_runs = [broken_run(name, os.path.join(results, name), error) for name, error in faulty_runs.items()]
    broken_trainings = [broken_training(name, results, error) for name, error in faulty_trainings.items()]
    plan = Plan(results, runs, config["models"], trainings, broken_runs, broken_trainings)
    if twice := [name for name, count in Counter(plan.rules()).items() if count > 1]:
        raise UsageError(f"the run {twice[0]} has the name of a rule of Kinemake", "give it another name")
    return plan


def load_runs(
    config: Mapping[str, Any],
    results: str,
    store: str,
    workers: int,
    again: Again,
    whole: bool,
    trainings: Sequence[TrainingJob],
) -> tuple[list[RunPlan], dict[str, UsageError]]:
    """The runs of a config, and the errors of those that cannot be planned, by name in the order of the config."""
    models, faults = read_models(config, trainings)
    found: dict[str, RunPlan] = {}
    broken: dict[str, UsageError] = {}
    for name, entry in config["runs"].items():
        try:
            if fault := next((faults[model] for model in models_of(entry) if model in faults), None):
                raise fault
            found[name] = plan_run(name, config, models, os.path.join(results, name), store, workers)
        except UsageError as error:
            broken[name] = error
    for planned in in_order(found):
        try:
            add_jobs(planned, again, whole, files_before(planned, found), workers, trainings)
        except UsageError as error:
            broken[planned.run.name] = error
    runs = [planned for name, planned in found.items() if name not in broken]
    return runs, {name: broken[name] for name in config["runs"] if name in broken}


def load_trainings(files: Mapping[str, str], results: str) -> tuple[list[TrainingJob], dict[str, UsageError]]:
    """The trainings of a config (name -> file of options), and the errors of those that cannot be planned, by name."""
    folders = {name: f"{results}/training/{name}" for name in files}
    found, broken = [], {}
    for name, path in files.items():
        try:
            found.append(plan_training(name, path, folders))
        except UsageError as error:
            broken[name] = error
    return found, broken


def broken_run(name: str, folder: str, error: UsageError) -> Broken:
    return Broken(name, str(error), f"{folder}/steps/.planned", f"{folder}/steps/logs/plan.log")


def broken_training(name: str, results: str, error: UsageError) -> Broken:
    folder = f"{results}/training/{name}"
    return Broken(f"training.{name}", str(error), f"{folder}.planned", f"{folder}.log")


def _folder(path: str) -> str:
    return os.path.normpath(os.path.expanduser(path))


def models_of(run: Mapping[str, Any]) -> list[Any]:
    """The names of the models of a run in the config, with names of scores that need none."""
    return [*(run[key] for key in ROLES if key in run), *run.get("scores", ())]


def read_models(
    config: Mapping[str, Any], trainings: Sequence[TrainingJob]
) -> tuple[dict[str, Model], dict[str, UsageError]]:
    """The declared models, and the errors in the folders of those that runs use, by name.

    Only the models that runs use are completed with the settings in their folders, or with those that a training will
    write there. Raises UsageError for a wrong declaration.
    """
    models = {name: declared_model(name, entry) for name, entry in config["models"].items()}
    faults: dict[str, UsageError] = {}
    used = {name for run in config["runs"].values() for name in models_of(run)}
    for name, model in models.items():
        if model.variant or (model.hub and name not in used):  # the variant cannot be detected without the folder
            check_variant(model, ALL_FAMILIES[model.family])
        if name in used:
            try:
                training = pending_training(model, trainings)
                to_come = settings_to_come(training, trainings) if training else None
                models[name] = complete_model(model, ALL_FAMILIES, to_come)
                check_recipe_options(models[name])
            except UsageError as error:
                faults[name] = error
            except JobError as error:
                faults[name] = UsageError(f"model {name}: {error.reason}", error.remedy)
    return models, faults


def check_recipe_options(model: Model) -> None:
    """Raise UsageError for a wrong option value in a model's folder."""
    for name, value in model.options.items():
        if (option := schema.option_named(name)) is None:
            raise UsageError(f"{model.folder() / SETTINGS} sets {name!r}, which is no option of a recipe", "leave it out")
        option.parse(value)
