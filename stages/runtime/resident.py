"""Keep loaded networks in memory, from one stage of a process to the next.

Only a fused job keeps networks; in all others, `take` just loads. A network that is not used stays on the GPU as long as
there is room, then in main memory (pinned, so that it returns fast); where there is no room either, it is dropped. The least
recently used one leaves the GPU first. One that finds no room in main memory is dropped and takes no other's place: the
links of a chain use all networks in a circle, so what was used last is needed last. Nothing here changes a result: weights
are moved, never converted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from stages.runtime import memory
from stages.runtime.log import log
from stages.runtime.model import Model
from stages.runtime.unchanged import States, changed_file

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
MARGIN = 2 * 2**30  # bytes of main memory that stay free
WORKING = 8 * 2**30  # bytes of a GPU for the work itself, until more was seen


class Name(NamedTuple):
    """A part of a model as it is loaded: with the `settings` that it depends on, such as its precision."""

    model: str
    part: str
    settings: tuple[Hashable, ...]


@dataclass
class Resident:
    """A part of a model that stays in memory: a network, or something small such as a tokenizer.

    Attributes:
        tensors: of the network.
        device: where it works; None for something small, or for a network that cannot be moved: one on several devices, or
            with quantised tensors that consist of several.
        copies: its tensors in main memory, if they lie there beside or instead of the device.
        is_ready: whether its tensors are where it works.
    """

    part: Any
    tensors: list[torch.Tensor] = field(default_factory=list)
    device: torch.device | None = None
    copies: list[torch.Tensor] = field(default_factory=list)
    is_ready: bool = True

    @classmethod
    def of(cls, part: Any) -> Resident:
        tensors = [*chain(part.parameters(), part.buffers())] if hasattr(part, "parameters") else []
        devices = {tensor.device for tensor in tensors}
        moves = len(devices) == 1 and not any(hasattr(tensor.data, "__tensor_flatten__") for tensor in tensors)
        return cls(part, tensors, devices.pop() if moves else None)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def is_on_gpu(self) -> bool:
        return self.is_ready and any(tensor.device.type != "cpu" for tensor in self.tensors)

    def to_device(self) -> None:
        """Move the tensors to the device. The copies in main memory stay."""
        for tensor, copy in zip(self.tensors, self.copies):
            tensor.data = copy.to(self.device, non_blocking=True)
        self.is_ready = True

    def to_main_memory(self) -> None:
        """Move the tensors to main memory, where copies of an earlier time may still lie."""
        if not self.copies:
            self.copies = [in_main_memory(tensor.data) for tensor in self.tensors]
        for tensor, copy in zip(self.tensors, self.copies):
            tensor.data = copy
        self.is_ready = False


def name_of(model: Model) -> str:
    """The path of a model's files, whatever the name under which it is declared."""
    return os.path.realpath(model.folder())


def in_main_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a GPU's tensor in main memory, pinned."""
    copy = tensor.cpu()
    return copy.pin_memory() if tensor.is_cuda else copy


class Residents:
    """The parts that stay in memory.

    Attributes:
        keeps: whether parts stay; otherwise each is loaded when it is taken.
        kept: the parts, the least recently used first.
        working: bytes of the GPU that the work itself needs.
    """

    def __init__(self, gpu_room: Callable[[], int], main_room: Callable[[], int]):
        """`gpu_room` and `main_room` return the free bytes of the GPU and of main memory."""
        self._gpu_room, self._main_room = gpu_room, main_room
        self.keeps = False
        self.kept: dict[Name, Resident] = {}
        self._in_use: set[Name] = set()
        self.working = WORKING
        self._states: dict[str, States] = {}  # of the files from which parts may have been loaded, by model

    def begin(self) -> None:
        """Regard all parts as unused: another phase, stage or model begins."""
        self._in_use.clear()

    def take(self, model: Model, part: str, load: Callable[[], T], *settings: Hashable) -> T:
        """A part of a model: the one that is kept, if it was loaded with equal settings, else a loaded one.

        `part` is its folder, below that of the model. `load` must not depend on more than the settings.
        """
        if not self.keeps:
            return load()
        name = Name(name_of(model), part, settings)
        resident = self.kept.pop(name, None)
        if resident is None:
            resident = Resident.of(load())
        elif not resident.is_ready:
            self._in_use.add(name)
            self._make_room(resident.bytes)
            resident.to_device()
        self.kept[name] = resident
        self._in_use.add(name)
        return resident.part

    def make_room(self, model: Model, sizes: Mapping[str, int], on_gpu: bool) -> int:
        """Make room for the parts of a model that are about to be used, as far as unused parts allow.

        `sizes` are their bytes, by part; `on_gpu` says whether they work on a GPU, with whole weights there. Returns the
        bytes of those that are not there yet.
        """
        wanted = {(name_of(model), part) for part in sizes}
        there = {name.part for name, one in self.kept.items() if name[:2] in wanted and (one.is_on_gpu or not on_gpu)}
        size = sum(size for part, size in sizes.items() if part not in there)
        if on_gpu:
            self._make_room(size, wanted)
        else:
            self._make_main_room(size)
        return size

    def _make_room(self, size: int, wanted: Collection[tuple[str, str]] = ()) -> None:
        """Free a GPU for `size` bytes of weights and the work with them. `wanted` are (model, part) that stay."""
        for name, resident in list(self.kept.items()):
            if self._gpu_room() >= size + self.working:
                return
            if resident.is_on_gpu and name not in self._in_use and name[:2] not in wanted:
                self._leave_gpu(name, resident)

    def _make_main_room(self, size: int) -> None:
        """Free main memory for `size` bytes of weights."""
        for name, resident in list(self.kept.items()):
            if not self._has_main_room(size) and name not in self._in_use and resident.tensors and not resident.is_on_gpu:
                self._drop(name)

    def unused_on_gpu(self) -> list[str]:
        """The parts that could leave the GPU."""
        return [name.part for name, one in self.kept.items() if one.is_on_gpu and name not in self._in_use]

    def leave_gpu(self) -> None:
        """Move all unused parts off the GPU, after its memory ran out."""
        for name, resident in list(self.kept.items()):
            if resident.is_on_gpu and name not in self._in_use:
                self._leave_gpu(name, resident)

    def forget(self, model: Model) -> None:
        """Drop all parts of a model, whose files may have changed."""
        for name in [name for name in self.kept if name.model == name_of(model)]:
            self._drop(name)

    def note_states(self, model: Model, states: States) -> None:
        """Drop all parts of a model if one of its files has changed since its state was noted. `states` are noted too."""
        known = self._states.pop(name_of(model), {})
        if changed_file(known):
            self.forget(model)
            known = {}
        self._states[name_of(model)] = known | states

    def note_peak(self, allocated: int) -> None:
        """Learn from the most bytes of the GPU that an item had `allocated` how much room the work needs."""
        weights = sum(one.bytes for one in self.kept.values() if one.is_on_gpu)
        self.working = max(self.working, allocated - weights)

    def _leave_gpu(self, name: Name, resident: Resident) -> None:
        if resident.device is None or not (resident.copies or self._has_main_room(resident.bytes)):
            return self._drop(name)
        resident.to_main_memory()
        log("resident", model=name.model, part=name.part, to="main memory", bytes=resident.bytes)

    def _has_main_room(self, size: int) -> bool:
        """Whether main memory has room for `size` bytes. Copies of what is on the GPU are given up for it."""
        for resident in self.kept.values():
            if self._main_room() >= size + MARGIN:
                break
            if resident.is_on_gpu:
                resident.copies = []
        return self._main_room() >= size + MARGIN

    def _drop(self, name: Name) -> None:
        resident = self.kept.pop(name)
        self._in_use.discard(name)
        if resident.tensors:
            log("resident", model=name.model, part=name.part, to="nowhere", bytes=resident.bytes)


RESIDENTS = Residents(lambda: memory.gpu_memory("cuda"), memory.main_memory)  # of this process
