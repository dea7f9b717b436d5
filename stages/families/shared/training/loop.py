"""The training loop of every model.

The batch of a step, its augmentation and its noise depend on the seed and the number of the step alone. So a training that
is interrupted and resumed ends with the same weights as an uninterrupted one, bit for bit on one CPU.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from diffusers import ConfigMixin
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from stages.families.shared.training import checkpoint
from stages.families.shared.training.clips import identity
from stages.families.shared.training.data import ClipDataset, EpochBatchSampler, collate
from stages.families.shared.training.options import TrainingOptions
from stages.media.sheet import contact_sheet
from stages.media.write import write_png
from stages.runtime.errors import JobError, UsageError
from stages.runtime.files import remove, replacing, set_default_permissions
from stages.runtime.log import log
from stages.runtime.model import write_settings
from stages.runtime.progress import reaches_tenth

# options, if a training has them, that a resumed training must not change
FIXED = (
    *("data", "dataset", "inside_share", "looks", "only", "max_samples", "num_frames", "frame_size"),
    *("batch_size", "gradient_accumulation", "seed", "variant", "prediction_type", "num_timesteps", "noise_schedule"),
    *("rank", "lora_alpha", "target_modules", "num_inference_steps", "teacher_steps", "guidance_scale", "shift"),
)


class Task(nn.Module):
    """What is trained: a module. Its parameters that require gradients are trained."""

    data: tuple[ClipDataset, ClipDataset]  # training clips, validation clips

    def forward(self, batch: Mapping[str, Any], step: int, generator: torch.Generator) -> torch.Tensor:
        """The loss of a batch, a scalar. All randomness comes from `generator`, on the CPU."""
        raise NotImplementedError

    def sample(self, batch: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
        """Samples for the contact sheet of a validation: titles and clips, uint8 [T, H, W, 3]."""
        raise NotImplementedError

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model in the layout that the stages load."""
        raise NotImplementedError


def train(task: Task, options: TrainingOptions, output: Path, cpu: bool) -> None:
    """Train to the end, from the start or from the state in `output`. Writes to `output`:

    model/ (the averaged weights at the lowest validation loss), last.safetensors (the state to resume from), samples/, logs/
    (TensorBoard), training.json (options, losses, seconds).
    """
    Trainer(task, options, output, cpu).run()


class Trainer:
    """Runs a training of a task."""

    def __init__(self, task: Task, options: TrainingOptions, output: Path, cpu: bool):
        self.options, self.output = options, output
        trackers = ["tensorboard", *(["wandb"] if options.wandb else [])]
        if options.wandb and not find_spec("wandb"):  # accelerate would ignore the tracker
            raise UsageError("wandb is not installed", "pip install wandb, or leave --wandb out")
        if options.mixed_precision == "fp16" and (cpu or not torch.cuda.is_available()):
            raise UsageError("mixed_precision is fp16 and this training runs on the CPU", "use no or bf16")
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise JobError(f"{output} cannot be written ({error.strerror})", "give another --output") from None
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=options.mixed_precision,
            gradient_accumulation_steps=options.gradient_accumulation,
            log_with=trackers,
            project_config=ProjectConfiguration(str(output), logging_dir=str(output / "logs")),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.task = task.to(self.accelerator.device)
        self.weights = {name: p for name, p in task.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            self.weights.values(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.ema = EMAModel(self.weights.values(), decay=options.ema_decay)
        self.model, self.optimizer = self.accelerator.prepare(task, optimizer)
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.history: list[dict[str, float]] = []
        self.steps = options.max_steps or self._epoch_steps() * options.num_epochs

    def run(self) -> None:
        self._resume()
        if self.step >= self.steps and self.history:
            log("trained_before", step=self.step, model=self._model_folder)
            if not (self.output / "training.json").is_file():
                self._report()
            return
        self.accelerator.init_trackers(
            "kinemake", config={name: str(value) for name, value in self.options.values().items()}
        )
        start = time.monotonic() - self.seconds
        with (
            stop_signal() as stop,
            tqdm(total=self.steps, initial=self.step, desc="train", unit="step", disable=None) as bar,
        ):
            batches = iter(self._loader())
            while self.step < self.steps:
                loss = self._one_step(batches)
                self.seconds = time.monotonic() - start
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}")
                rate = self._adam().param_groups[0]["lr"]
                self.accelerator.log({"loss": loss, "learning_rate": rate}, step=self.step)
                self._tell_progress(loss)
                last = self.step == self.steps
                if last or self.step % self.options.validate_every == 0:
                    self._validate(loss)
                stopped = not last and self._is_set(stop)
                if last or stopped or self.step % self.options.save_every == 0:
                    self._save()
                if stopped:
                    break
        self.accelerator.end_training()
        if self.step < self.steps:
            raise JobError(f"the training was stopped at step {self.step} of {self.steps}", "the same command goes on there")
        if self.accelerator.is_main_process:
            self._report()
            log("trained", step=self.step, model=self._model_folder, validation_loss=self._lowest_loss)

    @property
    def _model_folder(self) -> str:
        return str(self.output / "model")

    @property
    def _lowest_loss(self) -> float | None:
        return self.best if math.isfinite(self.best) else None  # JSON has no infinity

    def _tell_progress(self, loss: float) -> None:
        """Without a terminal, log every tenth of the steps, and print it to the output of Snakemake."""
        is_tenth = reaches_tenth(self.step - 1, self.step, self.steps)
        if is_tenth and self.accelerator.is_main_process and not sys.stderr.isatty():
            seconds = round(self.seconds, 1)
            log("progress", item=str(self.output), done=self.step, of=self.steps, unit="step", loss=loss, seconds=seconds)
            print(f"{self.output}: step {self.step} of {self.steps}, loss {loss:.4f}", flush=True)

    def _is_set(self, stop: Event) -> bool:
        """Whether any process was told to stop: all stop after the same step."""
        stopping = torch.tensor(float(stop.is_set()), device=self.accelerator.device)
        return bool(self.accelerator.reduce(stopping, "sum"))

    # ------------------------------------------------------------------------------------------------------------ step

    def _one_step(self, batches) -> float:
        """Run one step of the optimizer and return its mean loss. Raises JobError if the loss is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        losses = []
        self.model.train()
        for part in range(self.options.gradient_accumulation):
            batch = to_device(next(batches), self.accelerator.device)
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch, self.step, self._generator(self.step, part))
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise JobError(
                        f"the loss became {losses[-1]} at step {self.step + 1}, with the clips {', '.join(batch['name'])}",
                        "look at these clips, lower --learning-rate, or use --mixed-precision no; the saved state is kept",
                    )
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.weights.values(), self.options.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.ema.step(self.weights.values())
        self.step += 1
        return sum(losses) / len(losses)

    def _learning_rate(self) -> float:
        """The learning rate of the current step: linear warm-up, then half a cosine down to 0, or constant."""
        rate, warmup = self.options.learning_rate, self.options.warmup_steps
        if self.step < warmup:
            return rate * (self.step + 1) / warmup
        if self.options.schedule == "constant":
            return rate
        return rate * (1 + math.cos(math.pi * (self.step - warmup) / max(1, self.steps - warmup))) / 2

    def _generator(self, *numbers: int) -> torch.Generator:
        """A generator on the CPU, seeded by option seed, `numbers` and the process."""
        seeds = [self.options.seed, *numbers, self.accelerator.process_index]
        return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))

    # ------------------------------------------------------------------------------------------------------------ data

    def _loader(self) -> DataLoader:
        sampler = EpochBatchSampler(
            len(self.task.data[0]),
            self.options.batch_size,
            self.options.seed,
            self.step * self.options.gradient_accumulation,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return DataLoader(
            self.task.data[0], batch_sampler=sampler, collate_fn=collate, num_workers=getattr(self.options, "num_workers", 0)
        )

    def _epoch_steps(self) -> int:
        clips = self.options.batch_size * self.options.gradient_accumulation * self.accelerator.num_processes
        return max(1, len(self.task.data[0]) // clips)

    # -------------------------------------------------------------------------------------------------------- validate

    @torch.no_grad()
    def _validate(self, loss: float) -> None:
        """Validate the averaged weights, write samples, and save the model if its loss is the lowest so far."""
        if not self.accelerator.is_main_process:
            return
        self.ema.store(self.weights.values())
        self.ema.copy_to(self.weights.values())
        self.task.eval()
        clips, size = self.task.data[1], self.options.batch_size
        losses, weights, first_batch = [], [], None
        for first in range(0, len(clips), size):
            batch = collate([clips[i] for i in range(first, min(first + size, len(clips)))])
            batch = to_device(batch, self.accelerator.device)
            first_batch = first_batch or batch
            with self.accelerator.autocast():
                losses.append(self.task(batch, self.step, torch.Generator().manual_seed(first)).item())
            weights.append(len(batch["name"]))
        validation = float(np.average(losses, weights=weights))
        assert first_batch is not None  # there is a validation clip at least
        self._write_samples(first_batch)
        entry = {"step": self.step, "loss": loss, "validation_loss": validation, "seconds": round(self.seconds, 1)}
        self.history.append(entry)
        self.accelerator.log({"validation_loss": validation}, step=self.step)
        log("validation", **entry)
        if validation <= self.best:
            self.best = validation
            self._save_model()
        self.ema.restore(self.weights.values())

    def _write_samples(self, batch: Mapping[str, Any]) -> None:
        titles, clips = zip(*self.task.sample(batch), strict=True)
        sheet = contact_sheet(clips, titles)
        folder = self.output / "samples"
        folder.mkdir(exist_ok=True)
        write_png(folder / f"step_{self.step:07d}.png", sheet)
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": sheet[None]}, step=self.step, **layout)

    def _save_model(self) -> None:
        """Replace the saved model by that of this step, atomically."""
        new, folder, old = (self.output / name for name in ("model.new", "model", "model.old"))
        remove(new)
        self.task.save(new, getattr(torch, self.options.save_dtype))
        if settings := self.options.settings():
            start = self.options.start_from
            write_settings(new, settings, Path(start) if start else None)
        set_default_permissions(new)
        remove(old)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        remove(old)

    # ----------------------------------------------------------------------------------------------------------- state

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        facts = {"step": self.step, "seconds": self.seconds, "best": self.best, "history": self.history}
        facts |= {"fixed": {name: getattr(self.options, name) for name in FIXED if hasattr(self.options, name)}}
        facts |= {"clips": identity(self.options.data)}
        checkpoint.save(self.output / "last.safetensors", self.weights, self.ema.shadow_params, self._adam(), facts)

    def _report(self) -> None:
        """Write training.json, for the model's card. The file exists once the training has ended."""
        report = {
            "options": self.options.values(),
            "parameters": sum(p.numel() for p in self.weights.values()),
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "validation_loss": self._lowest_loss,
            "history": self.history,
        }
        with replacing(self.output / "training.json") as path:
            path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")

    def _resume(self) -> None:
        """Resume from the saved state, if there is one. Raises UsageError if it was made with other options."""
        path = self.output / "last.safetensors"
        if not path.is_file():
            return
        facts = checkpoint.load(path, self.weights, self.ema.shadow_params, self._adam())
        self._check_clips(facts)
        for name, value in facts["fixed"].items():
            if getattr(self.options, name) != value:
                raise UsageError(
                    f"{name} is {getattr(self.options, name)!r} and the training in {self.output} was begun with {value!r}",
                    "keep it, or give another --output",
                )
        self.step, self.seconds, self.history = facts["step"], facts["seconds"], facts["history"]
        self.best = facts["best"]
        self.ema.optimization_step = self.step
        log("resumed", step=self.step, of=self.steps)

    def _check_clips(self, facts: Mapping[str, Any]) -> None:
        """Raise UsageError for other clips than those that the training was begun with; their folder may have moved."""
        data = self.options.data
        if facts.get("clips") == identity(data):
            facts["fixed"].pop("data")
        elif "clips" in facts and facts["fixed"]["data"] == data:
            raise UsageError(
                f"the clips of {data} are no longer those that the training in {self.output} was begun with",
                "put them back, or give another --output",
            )

    def _adam(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)


@contextmanager
def stop_signal() -> Iterator[Event]:
    """An event that the first Ctrl-C or SIGTERM sets, so that the running step ends. The second one acts as usual."""
    stop = Event()

    def set_and_restore(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, set_and_restore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_dtype(trained: Any, dtype: torch.dtype) -> Any:
    """A copy of a model of diffusers or transformers in another precision, whose config names no folder of origin."""
    of_diffusers = isinstance(trained, ConfigMixin)
    own = {name: value for name, value in trained.config.items() if name[0] != "_"} if of_diffusers else {}
    copy = type(trained)(**own) if of_diffusers else type(trained)(trained.config)
    copy.load_state_dict(trained.state_dict())
    return copy.to(dtype)


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch to a device."""
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
