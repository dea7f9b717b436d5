"""The item loop: what every stage does around its own work.

Open the inputs, pass failures on, reuse what the store has, load the model once and only if it is needed, do the items,
publish each whole. One item's fault marks that item and no other; a fault that is not an item's ends the job.
"""

from __future__ import annotations

import hashlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.runtime import artifacts, memory
from stages.runtime.artifacts import KINDS, Artifact, Failure, canonical
from stages.runtime.device import take_device
from stages.runtime.errors import PLACES, ItemError, JobError, KinemakeError, UsageError, job_fault, one_line
from stages.runtime.files import file_fault
from stages.runtime.items import Item
from stages.runtime.log import log
from stages.runtime.made import Made, one_content_each, read_made, write_made
from stages.runtime.model import Model, cached_file_digest
from stages.runtime.options import GPUS, Option, Resident
from stages.runtime.places import output_fault
from stages.runtime.provenance import program, record
from stages.runtime.stages import Stage
from stages.runtime.store import STEM, Store, StoreRemoved, publish
from stages.runtime.unchanged import States, artifact_files, changed_file, file_states
from stages.runtime.weights import not_whole, remedy, resident_bytes
from stages.runtime.worker import Setting, Work, Worker, find_worker


@dataclass(frozen=True)
class Plant:
    """The tools for one model's items of a stage: which worker, which options count, where it runs."""

    stage: Stage
    worker: str
    options: Sequence[Option]
    model: Model | None = None
    version: tuple[Any, ...] = ()  # what, beside the stage, tells one way of making from another
    weights: tuple[str, ...] = ()  # patterns of the files that the result depends on
    resident: Resident = ()
    needs_model: Callable[[str, Mapping[str, Any]], bool] = lambda stage, values: True
    memory_saving: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """Where and how a shard runs; nothing of it changes a result.

    `mark_failed` writes a failure in the place of an item that cannot be made; without it such an item leaves nothing.
    `store` is a folder; None stands for one that lasts as long as the run.
    """

    store: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    mark_failed: bool = False
    debug: bool = False


@dataclass
class Report:
    """What became of a shard."""

    made: int = 0
    reused: int = 0
    loads: int = 0
    passed_on: int = 0  # failures of earlier stages, among the failures
    failures: list[Failure] = field(default_factory=list)
    unmarked: list[Failure] = field(default_factory=list)  # those whose place takes no mark either


@dataclass
class Order:
    """An item on its way through the loop."""

    item: Item
    options: dict[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    key: str = ""
    status: str = "waiting"
    memory_saving: bool = False
    seconds: float = 0.0
    states: States = field(default_factory=dict)  # of the files that the key was taken of
    sources: Sequence[tuple[str, str]] | None = None  # the users' files in it and their digests, where all are known
    again: bool = False  # begun a second time, since something changed under the first


STARTED = time.monotonic()  # the loop is among the first things that a stage imports


class PassedOn(Exception):
    """An input of the item is a failure of an earlier stage."""

    def __init__(self, failure: Failure):
        self.failure = failure


class Loop:
    """Runs the items of one stage and one model."""

    def __init__(self, plant: Plant, store: Store, running: Running):
        self.plant, self.store, self.running = plant, store, running
        self.report = Report()
        self._loaded: tuple | None = None
        self._by_hand = False  # one item, of a command line

    def run(self, items: Sequence[Item]) -> Report:
        """Do the items. Raises JobError for a fault that is not an item's; what was finished by then is published."""
        orders = [Order(item, dict(item.options)) for item in items]
        self._by_hand = len(items) == 1 and not self.running.mark_failed
        for order in orders:
            self._attempt(order, self._open)
        if waiting := [order for order in orders if order.status == "waiting"]:
            self._work(waiting)
        log(
            "shard",
            stage=self.plant.stage.name,
            items=len(items),
            made=self.report.made,
            reused=self.report.reused,
            failed=len(self.report.failures) - self.report.passed_on,
            passed_on=self.report.passed_on,
            model_loads=self.report.loads,
            process_seconds=round(time.monotonic() - STARTED, 3),
        )
        return self.report

    # ------------------------------------------------------------------------------------------------------------ open

    def _open(self, order: Order) -> None:
        """Read and check the inputs, find the key of the result, and take the result from the store if it is there."""
        if fault := output_fault(Path(order.item.output)):
            raise not_writable(order, fault)
        options = [order.options[option.name] for option in self.plant.options if option.is_file]
        order.states = file_states(Path(path) for path in (*order.item.files, *options) if path)
        order.inputs = {
            spec.name: open_input(order.item.inputs[spec.name], spec.kinds)
            for spec in self.plant.stage.inputs
            if spec.name in order.item.inputs
        }
        for opened in flat(order.inputs):
            if isinstance(opened, Artifact) and opened.failure:
                raise PassedOn(opened.failure)
            if isinstance(opened, Artifact):
                order.states |= file_states(artifact_files(opened))
        if self.plant.model and self.plant.needs_model(self.plant.stage.name, order.options):
            order.weights, states = self._weights
            order.states |= states
        if order.item.fingerprint:
            order.sources = self._sources(order)
        self._set_key(order)

    def _sources(self, order: Order) -> Sequence[tuple[str, str]] | None:
        """The users' files that the item is made of, here and in the stages before, with the digests of what was read.

        None where an artifact has no record of its own. Raises ItemError for a file that was replaced in between.
        """
        found = []
        for path, opened in zip(order.item.files, flat(order.inputs)):
            if isinstance(opened, Artifact):
                made = read_made(opened.path)
                if made is None or made.changed(opened.path):
                    return None
                found += made.sources
            else:
                found.append((path, digest(opened)))
        named = (order.options[option.name] for option in self.plant.options if option.is_file)
        return one_content_each([*found, *((path, file_option(path)) for path in named if path)])

    @cached_property
    def _weights(self) -> tuple[str, States]:
        """The digest of the model's files, and the states that they were in when it was taken."""
        folder = self.plant.model.folder()
        states = file_states(path for pattern in self.plant.weights for path in folder.glob(pattern) if os.path.isfile(path))
        return self.plant.model.digest(self.plant.weights), states

    def _set_key(self, order: Order) -> None:
        made_by = [self.plant.stage.name, self.plant.stage.version, *self.plant.version, order.weights]
        changing = {
            option.name: file_option(order.options[option.name]) if option.is_file else order.options[option.name]
            for option in self.plant.options
            if option.changes_result
        }
        inputs = {name: [digest(one) for one in flat({name: opened})] for name, opened in order.inputs.items()}
        order.key = hashlib.sha256(canonical([made_by, changing, inputs])).hexdigest()
        if entry := self._found(order):
            self._publish(order, entry, "reused")

    def _found(self, order: Order) -> Path | None:
        """The item as the store has it, unless it is to be made again."""
        return None if order.item.again else self.store.find(order.key)

    def _publish(self, order: Order, entry: Path, status: str) -> None:
        output = Path(order.item.output)
        try:
            digests = publish(entry, output)
            if order.sources is not None:
                write_made(output, Made.of(output, order.item.fingerprint, order.sources, digests))
        except OSError as error:
            if error.errno not in PLACES or Path(error.filename2 or error.filename or "").is_relative_to(self.store.root):
                raise
            raise not_writable(order, error.strerror) from error
        order.status = status
        self.report.made += status == "made"
        self.report.reused += status == "reused"
        self._log_item(order, seconds=round(order.seconds, 3), memory_saving=order.memory_saving)

    # ------------------------------------------------------------------------------------------------------------ work

    def _work(self, orders: list[Order]) -> None:
        program()  # which is remembered: a checkout may change before the work ends
        worker = find_worker(self.plant.worker)(Setting(self.plant.model, self._take_device(orders)))
        for order in orders:
            self._attempt(order, lambda order: worker.check(self._work_of(order, Path(order.item.output))))
        orders.sort(key=self._loading)
        *earlier, last = worker.phases()
        for phase in (*earlier, last):
            orders = [order for order in orders if order.status == "waiting"]
            worker.announce([self._work_of(order, Path(order.item.output)) for order in orders])
            for order in tqdm(orders, desc=f"{self.plant.stage.name} {phase}".strip(), unit="item", disable=None):
                self._attempt(order, lambda order, phase=phase: self._do(worker, order, phase, phase == last))

    def _take_device(self, orders: list[Order]) -> str:
        """Settle where torch runs, before it is imported."""
        if not any(order.weights for order in orders):
            return "cpu"
        gpus = max(order.options.get(GPUS.name, 1) for order in orders)
        return take_device(self.running.device, self.running.threads, gpus)

    def _loading(self, order: Order) -> tuple:
        """What the loaded model depends on, beside its phase."""
        return tuple(repr(order.options[option.name]) for option in self.plant.options if option.reloads)

    def _do(self, worker: Worker, order: Order, phase: str, last: bool) -> None:
        if entry := self._found(order):  # an equal item of this shard or another job was faster
            return self._publish(order, entry, "reused")
        start = time.monotonic()
        wanted = (phase, self._loading(order))
        if order.weights and wanted != self._loaded:
            self._check_room(order, worker.device)
            self._load(worker, order, phase)
            self._loaded = wanted
            self.report.loads += 1
            log("load", stage=self.plant.stage.name, phase=phase, seconds=round(time.monotonic() - start, 3))
            start = time.monotonic()
        with self.store.staging() as folder:
            work = self._work_of(order, folder / f"{STEM}{Path(order.item.output).suffix}")
            try:
                worker.run(work, phase)
            except Exception as error:
                if not folder.exists():
                    raise StoreRemoved(folder) from error
                raise
            order.seconds += time.monotonic() - start
            if last:
                if path := changed_file(order.states):
                    raise ItemError(f"{path} changed while it was read", "leave the files alone that a run reads")
                artifacts.add_provenance(work.output, self._provenance(order))
                self._publish(order, self.store.put(order.key, folder, anew=order.item.again), "made")

    def _load(self, worker: Worker, order: Order, phase: str) -> None:
        """Load the model of a phase. What the libraries say of damaged files ends the job, for it is no item's fault."""
        self._loaded = None  # a worker that stumbles here may hold a part of each model
        try:
            worker.load(order.options, phase)
        except (KinemakeError, ModuleNotFoundError):
            raise
        except Exception as error:
            if job_fault(error) or ran_out_of_memory(error) or self.running.debug:
                raise
            raise not_whole(self.plant.model, error) from error

    def _check_room(self, order: Order, device: str) -> None:
        """See that the weights fit before they are loaded: weights that are too many for a GPU may do when offloaded."""
        model, stage = self.plant.model, self.plant.stage.name
        size = resident_bytes(model, self.plant.resident, order.options.get("dtype", ""))
        offloading = [option for option in self.plant.options if option.offloads]
        offloaded = any(order.options[option.name] in option.offloads for option in offloading)
        try:
            memory.check(size, device, offloaded, f"{model.name} for {stage}")
        except memory.NoRoom as error:
            if self.plant.memory_saving.keys() & {option.name for option in offloading} and not order.memory_saving:
                raise
            raise JobError(str(error), "take a larger GPU, or the CPU") from None

    def _work_of(self, order: Order, output: Path) -> Work:
        return Work(order.item, order.inputs, order.options, order.weights, output, self.store.partial(order.key))

    def _provenance(self, order: Order) -> list[dict[str, Any]]:
        """The records of everything upstream, each once, and this item's own."""
        upstream = [r for opened in flat(order.inputs) if isinstance(opened, Artifact) for r in opened.provenance]
        own = record(
            stage=self.plant.stage.name,
            key=order.key,
            model=self.plant.model if order.weights else None,
            weights=order.weights,
            options=order.options,
            inputs={name: [digest(one) for one in flat({name: opened})] for name, opened in order.inputs.items()},
            files=order.item.files,
            seconds=round(order.seconds, 3),
            memory_saving=order.memory_saving,
        )
        return list({entry["key"]: entry for entry in [*upstream, own]}.values())

    # ---------------------------------------------------------------------------------------------------------- faults

    def _attempt(self, order: Order, step: Callable[[Order], None]) -> None:
        """A step of an item. The item's own fault is recorded; a fault that is not the item's ends the job."""
        try:
            return step(order)
        except PassedOn as passed:
            self.report.passed_on += 1
            return self._fail(order, passed.failure)
        except (ItemError, UsageError) as error:  # a wrong option is the fault of the item that has it
            if isinstance(error, UsageError) and self._by_hand:
                raise
            undisturbed = not isinstance(error, StoreRemoved) and not changed_file(order.states)
            if order.again or undisturbed:
                return self._fail(order, self._failure(order, error.reason, error.remedy))
            log("again", stage=self.plant.stage.name, item=order.item.id, reason=error.reason)
            prepare = self._begin_again
        except KinemakeError:
            raise
        except Exception as error:
            if reason := job_fault(error):
                raise JobError(reason, "mend that and run again: what is finished is kept") from error
            if not (ran_out_of_memory(error) and self.plant.memory_saving and not order.memory_saving):
                if self.running.debug:
                    raise
                return self._fail(order, self._unexpected(order, error))
            prepare = self._save_memory
        # Only here, where the error is gone and its traceback no longer holds on to the memory that ran out.
        prepare(order)
        if order.status == "waiting":
            self._attempt(order, step)

    def _unexpected(self, order: Order, error: Exception) -> Failure:
        if ran_out_of_memory(error):
            reason = f"memory ran out ({one_line(error)})"
            return self._failure(order, reason, "use a smaller size, fewer frames or a larger device")
        traceback.print_exc()
        reason = f"unexpected {type(error).__name__}: {one_line(error)}"
        if not order.weights:
            return self._failure(order, reason, "this is a bug of Kinemake: please report the log")
        model = self.plant.model  # the libraries meet some values of its configs only at work
        told = f"see that model {model.name} in {model.folder()} is as it was published"
        return self._failure(order, reason, f"{told} ({remedy(model)}), and report the log if it is")

    def _begin_again(self, order: Order) -> None:
        """Read everything anew: the inputs, and the model too."""
        order.again = True
        self.__dict__.pop("_weights", None)
        self._loaded = None
        self._attempt(order, self._open)

    def _save_memory(self, order: Order) -> None:
        """Switch to the memory-saving options. Where they change the result they change its key as well."""
        order.memory_saving = True
        order.options = {**order.options, **self.plant.memory_saving}
        log("memory_saving", stage=self.plant.stage.name, item=order.item.id, options=dict(self.plant.memory_saving))
        self._set_key(order)

    def _failure(self, order: Order, reason: str, remedy: str) -> Failure:
        return Failure(self.plant.stage.name, order.item.id, reason, remedy)

    def _fail(self, order: Order, failure: Failure) -> None:
        order.status = "failed"
        self.report.failures.append(failure)
        self._log_item(order, failed_in=failure.stage, reason=failure.reason, remedy=failure.remedy)
        if self.running.mark_failed and not mark(order.item.output, failure):
            self.report.unmarked.append(failure)

    def _log_item(self, order: Order, **facts: Any) -> None:
        log(
            "item",
            stage=self.plant.stage.name,
            item=order.item.id,
            status=order.status,
            output=order.item.output,
            **facts,
        )


def not_writable(order: Order, fault: str) -> ItemError:
    return ItemError(f"output {order.item.output} cannot be written ({fault})", "mend that, or choose another place for it")


def mark(output: str, failure: Failure) -> bool:
    """Leave a failure in an output's place; False where nothing can be written there."""
    try:
        artifacts.write_failure(Path(output), failure)
    except OSError as error:
        if error.errno not in PLACES:
            raise
        return False
    return True


def open_input(value: str | list[str], kinds: tuple[str, ...]) -> Artifact | Path | list:
    """A checked artifact, or the path of a user's own file where the stage takes one."""
    if isinstance(value, list):
        return [open_input(one, kinds) for one in value]
    path = Path(value)
    typed = [kind for kind in kinds if kind != "file"]
    if "file" in kinds and not (typed and path.suffix in {KINDS[kind].suffix for kind in typed}):
        check_is_file(path)
        return path
    return artifacts.read(path, typed)


def flat(inputs: Mapping[str, Any]) -> Iterator[Artifact | Path]:
    for opened in inputs.values():
        yield from opened if isinstance(opened, list) else [opened]


def file_option(path: str) -> str:
    """The content that an option's file brings into the key."""
    if not path:
        return ""
    check_is_file(Path(path))
    return digest(Path(path))


def check_is_file(path: Path) -> None:
    if fault := file_fault(path):
        raise ItemError(f"{path} {fault}", "mend the path, or its permissions")


def digest(opened: Artifact | Path) -> str:
    """The content of an input, or of an option's file. Raises ItemError where it can no longer be read."""
    try:
        return opened.digest if isinstance(opened, Artifact) else cached_file_digest(opened)
    except OSError as error:
        path = opened.path if isinstance(opened, Artifact) else opened
        raise ItemError(f"{path} cannot be read ({error.strerror})", "check the disk that it is on") from None


def ran_out_of_memory(error: Exception) -> bool:
    on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch has no class for it
    return on_cpu or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
