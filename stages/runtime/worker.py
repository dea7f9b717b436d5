"""What the item loop asks of the code that does a stage's work."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.runtime.artifacts import Artifact
from stages.runtime.errors import UsageError
from stages.runtime.items import Item
from stages.runtime.model import Model


@dataclass
class Work:
    """An item, opened: its inputs are checked artifacts or a user's own files, its options complete.

    `output` is a temporary place for the declared file (members beside it, see `artifacts`). `partial` may keep the state
    of a long item in one safetensors file; what is left there by a killed process is found again by the next.
    """

    item: Item
    inputs: Mapping[str, Artifact | Path | list]
    options: Mapping[str, Any]
    weights: str
    output: Path
    partial: Path


@dataclass(frozen=True)
class Setting:
    """Where a worker runs: the model (none for a stage without one) and the torch device ("cpu", "cuda", "cuda:1")."""

    model: Model | None
    device: str


class Worker(ABC):
    """Does the items of a shard, one after the other, with a model that it loads once.

    A worker whose model is too large to be whole in memory names several `phases`; each is loaded once per shard and all
    items pass through it before the next one is loaded, their state waiting in `work.partial`.
    """

    def __init__(self, setting: Setting):
        self.model, self.device = setting.model, setting.device

    def phases(self) -> tuple[str, ...]:
        """The names of the phases, in order."""
        return ("",)

    def check(self, work: Work) -> None:  # noqa: B027
        """Refuse what cannot be done, before any weights are loaded. Raises ItemError."""

    def announce(self, works: Sequence[Work]) -> None:  # noqa: B027
        """The items that `run` will be asked for in a phase, in order, for a worker that makes several at once."""

    def load(self, options: Mapping[str, Any], phase: str) -> None:  # noqa: B027
        """Load the model of a phase; called only when an item needs it. Raises JobError."""

    def follow(self, path: Path, artifact: Artifact, options: Mapping[str, Any], output: Path) -> None:
        """Make a video that grows at `output` while the artifact at `path`, as far as it is now, is still being made.

        Raises ItemError, UsageError for a family whose clips are made in one piece.
        """
        raise UsageError(f"{self.model.name} makes its clips in one piece", "leave --follow out")

    @abstractmethod
    def run(self, work: Work, phase: str) -> None:
        """Do a phase of an item. The last phase writes the artifact to `work.output`. Raises ItemError."""


def find_worker(reference: str) -> type:
    """The class behind "module:Class"."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
