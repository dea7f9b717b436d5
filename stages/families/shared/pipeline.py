"""Stages in a Python program: the base of the pipeline classes, which keep weights in memory from call to call."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.media.marks import bare_marks
from stages.media.write import VideoWriter
from stages.runtime import memory, weights
from stages.runtime.device import check_device
from stages.runtime.errors import ItemError, one_line
from stages.runtime.faults import ran_out_of_memory
from stages.runtime.inputs import open_input
from stages.runtime.items import Item
from stages.runtime.model import Model
from stages.runtime.options import Family, Options
from stages.runtime.stages import STAGES
from stages.runtime.worker import Work, Worker, import_class


def device_for(device: str) -> str:
    """The torch device for a name; for "auto" a GPU if torch sees one, else the CPU. Raises JobError for a missing GPU.

    No GPU is leased, unlike in a stage, because the process belongs to the user's program.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def save_video(frames: Iterable[np.ndarray], path: str | Path, fps: float = 8) -> None:
    """Write RGB frames, uint8 [H, W, 3] and at least one, as an H.264 video of `fps` frames per second.

    Its metadata says that a model made it.
    """
    frames = list(frames)
    height, width, _ = frames[0].shape
    with VideoWriter(path, width, height, fps, marks=bare_marks()) as video:
        for rgb in frames:
            video.write(rgb)


class ResidentStage:
    """A stage of a model on a device, with a worker for each of its phases. The workers stay, with their weights.

    With `takes_turns`, the weights of one phase at a time are in memory. Raises JobError for weights that are missing or
    cannot be read.
    """

    def __init__(self, name: str, family: Family, model: Model | None = None, device: str = "cpu"):
        self.stage, self.model, self.device = STAGES[name], model, device
        self.implementation = family.stages[name]
        if model:
            weights.check(model, family, name)
        self.loaded: dict[str, tuple[Worker, tuple]] = {}  # by phase: the worker, and the option values of its weights
        self.takes_turns = False

    def __call__(self, output: Path, values: Mapping[str, Any], **inputs: str | Path) -> Path:
        """Make `output` of the inputs, paths by name. `values` has all options of the stage, and may have others.

        Raises ItemError, JobError.
        """
        paths = {name: str(path) for name, path in inputs.items()}
        opened = {spec.name: open_input(paths[spec.name], spec.kinds) for spec in self.stage.inputs if spec.name in paths}
        options = self.implementation.options.of(values)
        item = Item(output.name, paths, str(output), options.values(), self.model.name if self.model else "")
        work = Work(item, opened, options, "", output, output.with_suffix(".partial"))
        first = self._worker("")
        first.check(work)
        for phase in first.phases():
            self._run(phase, work)
        return output

    def release(self) -> None:
        """Release the weights; the next call loads them again."""
        self.loaded.clear()
        gc.collect()

    def _worker(self, phase: str) -> Worker:
        worker = import_class(self.implementation.worker)(self.model, self.device)
        worker.phase = phase
        return worker

    def _run(self, phase: str, work: Work) -> None:
        """Run a phase of an item, with the worker whose weights are in memory, or a new one. Raises JobError, NoRoom."""
        declared = self.implementation.options.declared
        wanted = tuple(repr(getattr(work.options, one.name)) for one in declared if one.reloads)
        worker, had = self.loaded.get(phase) or (self._worker(phase), None)
        worker.prepare([work])
        if self.model and wanted != had and worker.uses_model(work):
            self.loaded.pop(phase, None)
            worker.release()
            if self.takes_turns:
                self.release()
            self._check_room(self.model, work.options)
            worker.load(work.options)
            self.loaded[phase] = worker, wanted
        worker.run(work)

    def _check_room(self, model: Model, options: Options) -> None:
        """Check that weights fit beside those in memory. Raises JobError, NoRoom."""
        declared = self.implementation.options.declared
        offloaded = any(getattr(options, one.name) in one.offloads for one in declared if one.offloads)
        size = weights.bytes_in_memory(model, self.implementation, options.values())
        memory.check(size, self.device, offloaded, f"{model.name} for {self.stage.name}")


class Pipeline:
    """The stages of a pipeline, by name.

    Where memory runs out, a stage runs without the weights of the others, and its phases take turns from then on.
    """

    def __init__(self) -> None:
        self.stages: dict[str, ResidentStage] = {}

    def run(self, name: str, output: Path, values: Mapping[str, Any], **inputs: str | Path) -> Path:
        """Run a stage, see ResidentStage. Raises ItemError, JobError."""
        try:
            return self.stages[name](output, values, **inputs)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
        # outside the except block, because the traceback of the error keeps memory alive
        for stage in self.stages.values():
            stage.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.stages[name].takes_turns = True
        try:
            return self.stages[name](output, values, **inputs)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            reason = f"memory ran out in {name} ({one_line(error)})"
            raise ItemError(reason, "use a smaller size, fewer frames or a larger device") from error
