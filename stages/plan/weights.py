"""The weights of the models as jobs: each model is checked, and downloaded if needed, before a GPU job waits for it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from stages.plan.jobs import weights_record, weights_state
from stages.plan.resolve import Run
from stages.plan.trainings import TrainingJob, pending_training
from stages.runtime.canonical import canonical_json
from stages.runtime.model import Model


@dataclass(frozen=True)
class WeightsJob:
    """The weights of a model as a Snakemake job. The jobs that load the model depend on the record that it writes."""

    model: Model
    run: Run  # a run that uses the model; its config declares it
    inputs: tuple[str, ...]  # the report of the training that makes the model

    @property
    def name(self) -> str:
        return f"weights.{self.model.name}"

    @property
    def output(self) -> str:
        return weights_record(self.run, self.model)

    @property
    def config(self) -> str:
        """The file that declares the model for the job, so that it needs the description of no run."""
        return self.output.removesuffix(".json") + ".yaml"

    @property
    def log(self) -> str:
        return self.output.removesuffix(".json") + ".log"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(canonical_json([self.model.identity, weights_state(self.model)])).hexdigest()

    @property
    def extra(self) -> str:
        """What a job of this kind needs installed: an extra of the package. A conversion loads models."""
        return "diffusion" if self.model.convert else "weights"

    def command(self) -> str:
        words = ["fetch", self.model.name, "--config", self.config, "--output", self.output]
        return shlex.join(words)


def plan_weights(runs: Iterable[Run], trainings: Iterable[TrainingJob]) -> list[WeightsJob]:
    """One job per model. That of a model which is still to be trained waits for its training."""
    used = {}
    for run in runs:
        for model in run.all_models:
            training = pending_training(model, trainings)
            used[model.name] = WeightsJob(model, run, (training.output,) if training else ())
    return list(used.values())
