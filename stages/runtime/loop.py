"""The item loop: the part of a stage that all stages share.

It opens the inputs, passes failures on, takes finished items from the store, loads the model once and only if needed, runs
the worker, and publishes each result atomically. A fault of an item fails that item alone; any other fault ends the job.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stages.runtime import artifacts, memory
from stages.runtime.artifacts import Artifact, Failure
from stages.runtime.device import all_cores, device_name, take_device
from stages.runtime.errors import ItemError, JobError, KinemakeError, UsageError, one_line
from stages.runtime.faults import PATH_ERRNOS, job_fault, ran_out_of_memory
from stages.runtime.files import remove
from stages.runtime.inputs import PassedOn, digests, file_option, iter_inputs, open_input
from stages.runtime.items import Item
from stages.runtime.key import digest_options, digest_work
from stages.runtime.lineage import REPLACED, UNKNOWN, Lineage, one_digest_each
from stages.runtime.log import log, log_about
from stages.runtime.model import Model
from stages.runtime.options import GPUS, Family, gpus_of_model
from stages.runtime.own_run import check_run
from stages.runtime.partial import StateMissing
from stages.runtime.places import output_fault
from stages.runtime.provenance import program, record
from stages.runtime.resident import RESIDENTS
from stages.runtime.result_record import Contents, ResultRecord, read_record, write_record
from stages.runtime.stages import Stage
from stages.runtime.store import STEM, Store, StoreRemoved, publish
from stages.runtime.unchanged import States, artifact_files, changed_file, changed_way, file_states, folder_states
from stages.runtime.weights import remedy, sizes_in_memory, weights_error
from stages.runtime.worker import Work, Worker, import_class


@dataclass(frozen=True)
class Settings:
    """Where and how a shard runs. No setting changes a result.

    With `mark_failed`, a failed item leaves its failure in the place of its output; otherwise it leaves nothing. `store` is
    a folder; None stands for a temporary store. `gpus_to_lease` is the largest number that an item of the process asks for,
    and `gpus_to_see` the largest over which one distributes its weights.
    """

    store: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    gpus_to_lease: int = 1
    gpus_to_see: int = 1
    mark_failed: bool = False
    debug: bool = False

    def with_gpus_of(self, items: Iterable[Item]) -> Settings:
        """These settings, with GPUs for these items too."""
        options = [item.options for item in items]
        lease = max([self.gpus_to_lease, *(values.get(GPUS, 1) for values in options)])
        return replace(self, gpus_to_lease=lease, gpus_to_see=max([self.gpus_to_see, *map(gpus_of_model, options)]))


@dataclass
class Report:
    """The outcome of a shard."""

    made: int = 0
    reused: int = 0
    loads: int = 0
    passed_on: int = 0  # failures of earlier stages, among the failures
    failures: list[Failure] = field(default_factory=list)
    unmade: list[str] = field(default_factory=list)  # outputs of the failed items
    unmarked: list[Failure] = field(default_factory=list)  # failures that could not be written in the output's place


@dataclass
class ItemRun:
    """The state of an item in the loop."""

    item: Item
    options: dict[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, list[str]] = field(default_factory=dict)  # of the inputs, by name
    files: Mapping[str, list[str]] = field(default_factory=dict)  # digests of the files that options name, by option
    weights: str = ""
    key: str = ""
    key_without_inputs: str = ""
    state_key: str = ""  # the key at the start, under which the state between the phases is
    status: str = "waiting"
    memory_saving: bool = False
    seconds: float = 0.0
    states: States = field(default_factory=dict)  # of the files that the key depends on
    ways: States = field(default_factory=dict)  # of the links and folders that lead to the user's files and the weights
    made_of: tuple[Contents, Contents] | None = None  # the user's files and the weights of a planned item
    without: dict[Failure, None] = field(default_factory=dict)  # the failures in the place of inputs, each once
    whole: bool = True  # whether no failure is in the place of what a planned item is made of
    again: bool = False  # the second attempt, after a file changed during the first

    def changed(self) -> Path | None:
        """A file that is not, or perhaps was not, the one that the key is made of, or a link or folder on the way to it."""
        return changed_file(self.states) or changed_way(self.ways)


STARTED = time.monotonic()  # about the start of the process: a stage imports this module early


class Loop:
    """The loop over the items of one stage, one family and one model."""

    def __init__(self, stage: Stage, family: Family, model: Model | None, store: Store, settings: Settings):
        self.stage, self.family, self._model, self.store, self.settings = stage, family, model, store, settings
        self.implementation = family.stages[stage.name]
        self.report = Report()
        self._loaded: tuple | None = None
        self._by_hand = False  # a single item, from the command line
        self._device = "cpu"

    @property
    def model(self) -> Model:
        """The model of the items. Only stages with a model may use it."""
        assert self._model is not None
        return self._model

    def run(self, items: Sequence[Item]) -> Report:
        """Run the items. Raises JobError for a fault that is not an item's; items finished by then are published."""
        runs = [ItemRun(item, dict(item.options)) for item in items]
        self._by_hand = len(items) == 1 and not self.settings.mark_failed
        for run in runs:
            self._attempt(run, self._open)
        if waiting := [run for run in runs if run.status == "waiting"]:
            self._work(waiting)
        log(
            "shard",
            stage=self.stage.name,
            items=len(items),
            made=self.report.made,
            reused=self.report.reused,
            failed=len(self.report.failures) - self.report.passed_on,
            passed_on=self.report.passed_on,
            model_loads=self.report.loads,
            process_seconds=round(time.monotonic() - STARTED, 3),
            memory_mb=round(memory.own_memory() / 1e6),
        )
        return self.report

    # ------------------------------------------------------------------------------------------------------------ open

    def _open(self, run: ItemRun) -> None:
        """Open the inputs, compute the key, and publish the result from the store if it is there."""
        if fault := output_fault(Path(run.item.output)):
            raise not_writable(run, fault)
        named = self.implementation.files_in(run.options)
        run.states = file_states(Path(path) for path in (*run.item.files, *chain(*named.values())))
        run.ways = folder_states(run.states)
        run.inputs = {
            spec.name: open_input(run.item.inputs[spec.name], spec.kinds)
            for spec in self.stage.inputs
            if spec.name in run.item.inputs
        }
        run.without = {}
        for spec in self.stage.inputs:
            for opened in iter_inputs({spec.name: run.inputs.get(spec.name, [])}):
                if not isinstance(opened, Artifact):
                    continue
                if opened.failure and not spec.may_fail:
                    raise PassedOn(opened.failure)
                if opened.failure:
                    run.without[opened.failure] = None
                run.states |= file_states(artifact_files(opened))
        if self._model and self.implementation.needs_model(run.options):
            run.weights, states, ways = self._weights
            run.states |= states
            run.ways |= ways
        run.digests = digests(run.inputs)
        run.files = {name: [file_option(path) for path in paths] for name, paths in named.items()}
        if run.item.lineage:
            run.made_of = self._made_of(run, run.item.lineage)
        self._set_key(run)

    def _made_of(self, run: ItemRun, lineage: Lineage) -> tuple[Contents, Contents]:
        """The user's files and the weights behind the item, earlier stages included, with their digests.

        What a failure was made of is not known. Raises ItemError for an input that is not the one of the plan, and for a
        file that was replaced between stages.
        """
        run.whole = not run.without
        sources: list[tuple[Sequence[int], list[str]]] = []
        weights: list[tuple[Sequence[int], list[str]]] = []
        opened = [*iter_inputs(run.inputs), *chain(*run.files.values())]
        own = [*chain(*run.digests.values()), *chain(*run.files.values())]
        for one, digest, origin in zip(opened, own, lineage.origins):
            if not isinstance(one, Artifact):
                sources.append((origin.sources, [digest]))
                continue
            if one.failure:
                sources.append((origin.sources, [UNKNOWN] * len(origin.sources)))
                weights.append((origin.weights, [UNKNOWN] * len(origin.weights)))
                continue
            made = read_record(one.path)
            if made is None or made.fingerprint != origin.fingerprint or made.changed(one.path):
                raise ItemError(f"{one.path} is not what the plan of this run knows", REPLACED)
            run.whole = run.whole and made.whole
            sources.append((origin.sources, [digest for _, digest in made.sources]))
            weights.append((origin.weights, [digest for _, digest in made.weights]))
        if run.weights:
            place = [number for number, one in enumerate(lineage.weights) if one == (self.model.name, self.stage.name)]
            weights.append((place, [run.weights]))
        names = [f"{model} for {stage}" for model, stage in lineage.weights]
        return one_digest_each(lineage.sources, sources), one_digest_each(names, weights)

    @cached_property
    def _weights(self) -> tuple[str, States, States]:
        """The digest of the model's files, their states at that time, and those of the folders that lead to them."""
        folder = self.model.folder()
        states = file_states(
            path for pattern in self.implementation.weights for path in folder.glob(pattern) if os.path.isfile(path)
        )
        RESIDENTS.note_states(self.model, states)
        ways = folder_states(states)
        return self.model.digest(self.implementation.weights), states, ways

    def _set_key(self, run: ItemRun) -> None:
        run.key, run.key_without_inputs = self._key(run, run.digests), self._key(run, {})
        run.state_key = run.state_key or run.key
        if entry := self._found(run):
            self._publish(run, entry, "reused")

    def _key(self, run: ItemRun, inputs: Mapping[str, list[str]]) -> str:
        """The key of the item, were these the digests of its inputs."""
        options = digest_options(self.implementation.options.declared, run.options)
        return digest_work(self.stage, self.family, options, run.files, inputs, run.weights)

    def _found(self, run: ItemRun) -> Path | None:
        """The store's entry of the item; None if it is absent or is to be made again."""
        return None if run.item.again else self.store.find(run.key)

    def _publish(self, run: ItemRun, entry: Path, status: str) -> None:
        check_run()
        output = Path(run.item.output)
        try:
            publish(entry, output, partial(self._rename, run), partial(self._write_record, run) if run.made_of else None)
        except OSError as error:
            place = Path(error.filename2 or error.filename or "")
            if error.errno not in PATH_ERRNOS or place.is_relative_to(self.store.root):
                raise
            raise not_writable(run, error.strerror or str(error)) from error
        run.status = status
        self.report.made += status == "made"
        self.report.reused += status == "reused"
        self._log_item(run, seconds=round(run.seconds, 3), memory_saving=run.memory_saving)
        for failure in run.without:
            reason = f"made without {failure.item}, which failed in {failure.stage}: {failure.reason}"
            log("warning", item=run.item.id, reason=reason, remedy=failure.remedy)

    def _write_record(self, run: ItemRun, published: Mapping[str, str]) -> None:
        """Write the record of a planned item. `published` are the digests of its files, by name."""
        assert run.made_of is not None
        output = Path(run.item.output)
        write_record(output, ResultRecord.of(output, run.item.fingerprint, *run.made_of, published, run.whole))

    # ------------------------------------------------------------------------------------------------------------ work

    def _work(self, runs: list[ItemRun]) -> None:
        program()  # cached here, because the checkout may change before the work ends
        self._device = self._take_device(runs)
        worker = import_class(self.implementation.worker)(self._model, self._device)
        for run in runs:
            self._attempt(run, lambda run: worker.check(self._work_of(run, Path(run.item.output))))
        runs.sort(key=self._reload_key)
        for phase in worker.phases():
            worker.phase = phase
            runs = [run for run in runs if run.status == "waiting"]
            worker.prepare([self._work_of(run, Path(run.item.output)) for run in runs])
            with log_about(stage=self.stage.name, **({"phase": phase} if phase else {})):
                for run in tqdm(runs, desc=f"{self.stage.name} {phase}".strip(), unit="item", disable=None):
                    self._attempt(run, lambda run: self._do(worker, run))

    def _take_device(self, runs: list[ItemRun]) -> str:
        """Choose the device before torch is imported."""
        if not any(run.weights for run in runs):
            return "cpu"
        settings = self.settings
        return take_device(settings.device, settings.threads, settings.gpus_to_lease, settings.gpus_to_see)

    def _reload_key(self, run: ItemRun) -> tuple:
        """The option values that the loaded model depends on."""
        return self.implementation.options.of(run.options).reloading()

    def _do(self, worker: Worker, run: ItemRun) -> None:
        check_run()
        if entry := self._found(run):  # an equal item of this shard or another job finished first
            return self._publish(run, entry, "reused")
        wanted = (worker.phase, self._reload_key(run))
        if run.weights and wanted != self._loaded and worker.uses_model(self._work_of(run, Path(run.item.output))):
            self._load(worker, run)
            self._loaded = wanted
            self.report.loads += 1
        start = time.monotonic()
        with self.store.staging() as folder:
            work = self._work_of(run, folder / f"{STEM}{Path(run.item.output).suffix}")
            try:
                worker.run(work)
            except StateMissing:
                if entry := self._found(run):  # another job has finished the item meanwhile
                    return self._publish(run, entry, "reused")
                raise
            except Exception as error:
                if not folder.exists():
                    raise StoreRemoved(folder) from error
                raise
            run.seconds += time.monotonic() - start
            if RESIDENTS.keeps:
                RESIDENTS.note_peak(memory.peak_of_gpu(worker.device))
            if worker.phase == worker.phases()[-1]:
                if path := run.changed():
                    raise ItemError(f"{path} changed while it was read", "leave the files alone that a run reads")
                artifacts.add_provenance(work.output, self._provenance(run))
                self._publish(run, self.store.put(run.key, folder, anew=run.item.again), "made")
                remove(work.partial)

    def _load(self, worker: Worker, run: ItemRun) -> None:
        """Load the model of the phase in the place of the previous one.

        Errors of the libraries about damaged files end the job, because they are no item's fault.
        """
        self._loaded = None  # after an error, the worker may hold a part of the model
        worker.release()
        RESIDENTS.begin()
        self._check_room(run, worker)
        try:
            with all_cores():
                worker.load(self.implementation.options.of(run.options))
        except (KinemakeError, ModuleNotFoundError):
            raise
        except Exception as error:
            if job_fault(error) or ran_out_of_memory(error) or self.settings.debug:
                raise
            raise weights_error(self.model, error) from error

    def _check_room(self, run: ItemRun, worker: Worker) -> None:
        """Make room for the weights of the phase, and check that they fit in memory, before they are loaded.

        Raises NoRoom if offloading may help, else JobError.
        """
        model, stage = self.model, self.stage.name
        groups, phases = sizes_in_memory(model, self.implementation, run.options), worker.phases()
        if len(groups) == len(phases):
            group = groups[phases.index(worker.phase)]
        else:
            group = max(groups, key=lambda sizes: sum(sizes.values()), default={})
        offloading = [option for option in self.implementation.options.declared if option.offloads]
        offloaded = any(run.options[option.name] in option.offloads for option in offloading)
        size = RESIDENTS.make_room(model, group, worker.device.startswith("cuda") and not offloaded)
        try:
            memory.check(size, worker.device, offloaded, f"{model.name} for {stage}")
        except memory.NoRoom as error:
            if (
                self.implementation.on_out_of_memory.keys() & {option.name for option in offloading}
                and not run.memory_saving
            ):
                raise
            raise JobError(str(error), "take a larger GPU, or the CPU") from None

    def _work_of(self, run: ItemRun, output: Path) -> Work:
        options, partial_state = self.implementation.options.of(run.options), self.store.partial(run.state_key)
        earlier = None if run.item.again else Path(run.item.output)
        return Work(run.item, run.inputs, options, run.weights, output, partial_state, earlier, run.key_without_inputs)

    def _provenance(self, run: ItemRun) -> list[dict[str, Any]]:
        """The provenance records of all earlier stages and of this item."""
        own = record(
            stage=self.stage.name,
            key=run.key,
            stage_version=self.stage.version,
            family=self.family.name,
            family_version=self.family.version,
            weights=run.weights,
            options=run.options,
            option_files=run.files,
            inputs=run.digests,
            device=device_name(self._device),
            seconds=round(run.seconds, 3),
            memory_saving=run.memory_saving,
        )
        return after_inputs(run, {**own, **self._names(run)})

    def _names(self, run: ItemRun) -> dict[str, Any]:
        """The names and paths that this run uses for the item's files and model, and the items that its inputs are of."""
        model = self.model if run.weights else None
        return {
            "files": run.item.files,
            "input_keys": [key_of(opened) for opened in iter_inputs(run.inputs)],
            "model": model and {"name": model.name, "source": model.source, "revision": model.revision},
        }

    def _rename(self, run: ItemRun, copy: Path) -> bool:
        """Write the file and model names of this run into the description of an item. Returns whether it changed.

        Also of an item that was just made: another process may have put an equal one into the store first.
        """
        description = artifacts.read_description(copy)
        files = {name: run.options[name] for name in self.implementation.files_in(run.options)}
        own: dict[str, Any] = next((one for one in description.provenance if one["key"] == run.key), {"key": run.key})
        own = {**own, **self._names(run), "options": {**own.get("options", {}), **files}}
        fields = {"model": self._model.name} if self._model and "model" in description.fields else {}
        provenance = after_inputs(run, own)
        if provenance == description.provenance and fields.items() <= dict(description.fields).items():
            return False
        artifacts.add_provenance(copy, provenance, fields)
        return True

    # ---------------------------------------------------------------------------------------------------------- faults

    def _attempt(self, run: ItemRun, step: Callable[[ItemRun], None]) -> None:
        """Run a step of an item. A fault of the item is recorded; any other fault ends the job."""
        try:
            return step(run)
        except PassedOn as passed:
            self.report.passed_on += 1
            return self._fail(run, passed.failure)
        except (ItemError, UsageError) as error:  # a wrong option fails only its item
            if isinstance(error, UsageError) and self._by_hand:
                raise
            undisturbed = not isinstance(error, StoreRemoved) and not run.changed()
            if run.again or undisturbed:
                return self._fail(run, self._failure(run, error.reason, error.remedy))
            log("again", stage=self.stage.name, item=run.item.id, reason=error.reason)
            prepare = self._begin_again
        except KinemakeError:
            raise
        except Exception as error:
            if reason := job_fault(error):
                raise JobError(reason, "mend that and run again: what is finished is kept") from error
            if ran_out_of_memory(error) and RESIDENTS.unused_on_gpu():
                prepare = self._move_away
            elif ran_out_of_memory(error) and self.implementation.on_out_of_memory and not run.memory_saving:
                prepare = self._save_memory
            elif self.settings.debug:
                raise
            else:
                return self._fail(run, self._unexpected(run, error))
        # Outside the except block, because the traceback of the error keeps memory alive.
        prepare(run)
        if run.status == "waiting":
            self._attempt(run, step)

    def _unexpected(self, run: ItemRun, error: Exception) -> Failure:
        if ran_out_of_memory(error):
            reason = f"memory ran out ({one_line(error)})"
            return self._failure(run, reason, "use a smaller size, fewer frames or a larger device")
        traceback.print_exc()
        reason = f"unexpected {type(error).__name__}: {one_line(error)}"
        if not run.weights:
            return self._failure(run, reason, "this is a bug of Kinemake: please report the log")
        model = self.model  # some wrong values in its configs raise only while the model runs
        check = f"see that model {model.name} in {model.folder()} is as it was published"
        return self._failure(run, reason, f"{check} ({remedy(model)}), and report the log if it is")

    def _begin_again(self, run: ItemRun) -> None:
        """Reread everything: the inputs and the model."""
        run.again, run.state_key = True, ""
        self.__dict__.pop("_weights", None)
        self._loaded = None
        if self._model:
            RESIDENTS.forget(self._model)
        self._attempt(run, self._open)

    def _move_away(self, run: ItemRun) -> None:
        """Move networks of other stages off the GPU, which changes no result."""
        log("memory_saving", stage=self.stage.name, item=run.item.id, moved=RESIDENTS.unused_on_gpu())
        RESIDENTS.leave_gpu()

    def _save_memory(self, run: ItemRun) -> None:
        """Switch to the memory-saving options. If they change the result, they change the key too."""
        run.memory_saving = True
        run.options = {**run.options, **self.implementation.on_out_of_memory}
        log("memory_saving", stage=self.stage.name, item=run.item.id, options=dict(self.implementation.on_out_of_memory))
        self._set_key(run)

    def _failure(self, run: ItemRun, reason: str, remedy: str) -> Failure:
        return Failure(self.stage.name, run.item.id, reason, remedy)

    def _fail(self, run: ItemRun, failure: Failure) -> None:
        run.status = "failed"
        check_run()
        self.report.failures.append(failure)
        self.report.unmade.append(run.item.output)
        self._log_item(run, failed_in=failure.stage, reason=failure.reason, remedy=failure.remedy)
        if self.settings.mark_failed and not mark(run.item.output, failure):
            self.report.unmarked.append(failure)

    def _log_item(self, run: ItemRun, **facts: Any) -> None:
        log(
            "item",
            stage=self.stage.name,
            item=run.item.id,
            status=run.status,
            output=run.item.output,
            **facts,
        )


def after_inputs(run: ItemRun, own: dict[str, Any]) -> list[dict[str, Any]]:
    """The provenance records of all inputs, each once, followed by the item's own."""
    upstream = [one for opened in iter_inputs(run.inputs) if isinstance(opened, Artifact) for one in opened.provenance]
    return list({one["key"]: one for one in [*upstream, own]}.values())


def key_of(opened: Artifact | Path) -> str:
    """The key of the item whose result an input is; "" for a user's file, and for an artifact without provenance."""
    return opened.provenance[-1]["key"] if isinstance(opened, Artifact) and opened.provenance else ""


def not_writable(run: ItemRun, fault: str) -> ItemError:
    return ItemError(f"output {run.item.output} cannot be written ({fault})", "mend that, or choose another place for it")


def mark(output: str, failure: Failure) -> bool:
    """Write a failure in the place of an output. False if that path cannot be written."""
    try:
        artifacts.write_failure(Path(output), failure)
    except OSError as error:
        if error.errno not in PATH_ERRNOS:
            raise
        return False
    return True
