"""The interface between the item loop and the code that does the work of a stage."""

from __future__ import annotations

import gc
import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from stages.runtime.artifacts import Artifact
from stages.runtime.errors import UsageError
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.options import Options

AnyOptions = TypeVar("AnyOptions", bound=Options)


@dataclass
class Work(Generic[AnyOptions]):
    """An item with opened inputs (validated artifacts or the user's own files) and complete options.

    `output` is the temporary path of the declared file; members lie beside it, see `artifacts`. `partial` is the place
    for the state of a long item, a safetensors file or a folder of them; that of a killed process is still there for the
    next one. `earlier` is the place of the result before this one, of which a stage may take what has not changed; None
    where the item is to be made from nothing. `key_without_inputs` is a key of all else that the result depends on: stage,
    family, options and weights.
    """

    item: Item
    inputs: Mapping[str, Artifact | Path | list[Artifact]]
    options: AnyOptions
    weights: str
    output: Path
    partial: Path
    earlier: Path | None = None
    key_without_inputs: str = ""

    def input(self, name: str) -> Artifact | Path:
        """An input that is a single artifact or file."""
        found = self.inputs[name]
        assert not isinstance(found, list)
        return found

    def optional(self, name: str) -> Artifact | Path | None:
        """An optional input, or None if the item has none."""
        return self.input(name) if name in self.inputs else None

    def artifact(self, name: str) -> Artifact:
        """An input that is a single artifact."""
        found = self.inputs[name]
        assert isinstance(found, Artifact)
        return found

    def artifacts(self, name: str) -> list[Artifact]:
        """An input that is a list of artifacts."""
        found = self.inputs[name]
        assert isinstance(found, list)
        return found


class Worker(ABC, Generic[AnyOptions]):
    """Processes the items of a shard one after the other, with a model that it loads once.

    `device` is a torch device: "cpu", "cuda", "cuda:1".

    A worker whose model does not fit in memory as a whole has several `phases`. All items pass through a phase before the
    next one is loaded; `phase` is the current one. Between phases an item's state is in `work.partial`; the last phase
    writes the artifact.
    """

    phase = ""
    _own: frozenset[str] = frozenset()  # names of the attributes that no `load` has set

    def __init__(self, model: Model | None, device: str):
        self._model, self.device = model, device

    @property
    def model(self) -> Model:
        """The model of the shard. Only workers of stages with a model may use it."""
        assert self._model is not None
        return self._model

    def phases(self) -> tuple[str, ...]:
        """The names of the phases, in order."""
        return ("",)

    def check(self, work: Work[AnyOptions]) -> None:
        """Raise ItemError for an item that cannot be made, before any weights are loaded."""

    def prepare(self, works: Sequence[Work[AnyOptions]]) -> None:
        """Receive the items that `run` will be called for, in order; for a worker that batches items."""

    def uses_model(self, work: Work[AnyOptions]) -> bool:
        """Whether `run` will use the model in the current phase; False where the item's state is past it."""
        return True

    def load(self, options: AnyOptions) -> None:
        """Load the model. Called once per phase, and only if an item needs it. Raises JobError."""

    def release(self) -> None:
        """Let go of what `load` has set, so that its memory is free for another model. To be called before every `load`."""
        self._own = self._own or frozenset(vars(self))
        for name in vars(self).keys() - self._own - {"_own"}:
            delattr(self, name)
        gc.collect()

    def follow(self, path: Path, artifact: Artifact, options: AnyOptions, output: Path) -> None:
        """Write a growing video to `output` while the artifact at `path` is being made; `artifact` is its current state.

        Raises ItemError, and UsageError for a family that makes a clip in one piece.
        """
        raise UsageError(f"{self.model.name} makes its clips in one piece", "leave --follow out")

    @abstractmethod
    def run(self, work: Work[AnyOptions]) -> None:
        """Make an item: write the artifact to `work.output`. Raises ItemError."""


def import_class(reference: str) -> Any:
    """Import the object that "module:name" refers to."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)
