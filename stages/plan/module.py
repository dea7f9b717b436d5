"""Kinemake as a module of another workflow of Snakemake: its config, its paths, and when its plan is written.

Snakemake gives a module the `config` of the module statement instead of config.yaml, puts `prefix` before its paths or
replaces their beginning, and ignores its `onstart`, `onsuccess` and `onerror`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.runtime.checkout import CHECKOUT
from stages.runtime.errors import UsageError
from stages.runtime.model import own_entries

EVENTS = ("_onstart", "_onsuccess", "_onerror")  # attributes of Snakemake's Workflow: a function of the log file each


def check_version(snakefile: str, folder: str) -> None:
    """Raise UsageError if a Snakefile in another `folder`, as a remote module is, has another version than this package."""
    if Path(folder) != CHECKOUT and (installed := metadata.version("kinemake")) != snakefile:
        raise UsageError(
            f"the Snakefile is of Kinemake {snakefile}, and the installed package of {installed}",
            f"pip install kinemake=={snakefile}, or name v{installed} in the module statement",
        )


def with_own_models(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that also declares the models of Kinemake's own config.yaml, except those whose names it declares itself."""
    declared = config.get("models") or {}
    return {**config, "models": {**own_entries(), **declared} if isinstance(declared, Mapping) else declared}


def module_config(config: Mapping[str, Any], modify: Callable[[str], str]) -> dict[str, Any]:
    """The config of a module, with its results and its store where `modify`, Snakemake's modifier of paths, puts them.

    Raises UsageError without a config, and for a modifier that takes results apart.
    """
    if not config:
        raise UsageError(
            "the module statement of Kinemake has no config, or an empty one", "add config: with runs, see docs/modules.md"
        )

    def moved(folder: str) -> str:
        return os.path.normpath(modify(f"{os.path.normpath(os.path.expanduser(folder))}/"))

    folders = {"results": "results", **{name: config[name] for name in ("results", "store") if name in config}}
    runs = config.get("runs") or {}
    if not isinstance(runs, Mapping) or not all(isinstance(folder, str) for folder in folders.values()):
        return {**config}  # which the plan refuses
    results = folders["results"]
    found = {**config, **{name: moved(folder) for name, folder in folders.items()}}
    for run in runs:
        if moved(f"{results}/{run}") != f"{found['results']}/{run}":
            raise UsageError(
                f"replace_prefix moves {results}/{run} to {moved(f'{results}/{run}')} without its neighbours",
                f"replace {results} as a whole, or set results in the config",
            )
    return found


class EventsOnce:
    """Called at least once, it adds a module's functions to what a workflow calls at its events.

    Call it when all Snakefiles are read: before, the importing workflow may still set functions of its own, which stay.
    """

    def __init__(self, workflow: Any, start: Callable[[], Any], success: Callable[[], Any], error: Callable[[], Any]):
        self._workflow, self._own, self._joined = workflow, (start, success, error), False

    def __call__(self) -> None:
        if self._joined:
            return
        self._joined = True
        for event, own in zip(EVENTS, self._own):
            setattr(self._workflow, event, _both(own, getattr(self._workflow, event)))


def _both(own: Callable[[], Any], other: Callable[[Any], Any]) -> Callable[[Any], None]:
    def call(log: Any) -> None:
        own()
        other(log)

    return call
