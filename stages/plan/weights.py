"""The weights of the models that runs use, as jobs: each is checked, and fetched if need be, before any GPU waits for it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from stages.plan.jobs import weights_record, weights_state
from stages.plan.resolve import Run
from stages.runtime.artifacts import canonical
from stages.runtime.model import Model


@dataclass(frozen=True)
class WeightsJob:
    """A model's weights as Snakemake waits for them. The record of its files is what the jobs that load it depend on."""

    model: Model
    run: Run  # one that uses it: its config declares the model

    @property
    def name(self) -> str:
        return f"weights.{self.model.name}"

    @property
    def output(self) -> str:
        return weights_record(self.run, self.model)

    @property
    def log(self) -> str:
        return self.output.removesuffix(".json") + ".log"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(canonical([self.model.identity, weights_state(self.model)])).hexdigest()

    def command(self) -> str:
        words = ["fetch", self.model.name, "--config", f"{self.run.folder}/config.yaml", "--output", self.output]
        return shlex.join(words)


def plan_weights(runs: Iterable[Run]) -> list[WeightsJob]:
    """A job for each model of the runs, once."""
    used = {model.name: WeightsJob(model, run) for run in runs for model in run.models.values() if model}
    return list(used.values())
