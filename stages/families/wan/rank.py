"""What a rank of `generate` does: it has the same transformer with the same LoRAs, and makes passes or its part of them."""

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from diffusers import ContextParallelConfig
from torch import distributed

from stages.families.wan.generate import Generate
from stages.families.wan.options import FAMILY, GenerateOptions
from stages.runtime.model import Model
from stages.runtime.resident import RESIDENTS
from stages.runtime.weights import sizes_in_memory


class Passes:
    """Makes passes. Its methods are those that `Rank` calls."""

    def __init__(self, model: Model, device: str):
        self.worker = Generate(model, device)

    def load(self, phase: str, options: GenerateOptions) -> None:
        """Load the expert of a phase as the process of the stage does. `options.gpus` is 1. Raises JobError, ItemError."""
        worker = self.worker
        worker.release()
        RESIDENTS.begin()
        worker.phase = phase
        sizes = sizes_in_memory(worker.model, FAMILY.stages["generate"], options.values())[worker.phases().index(phase)]
        RESIDENTS.make_room(worker.model, sizes, worker.device != "cpu" and options.offload == "none")
        worker.load(options)

    @torch.no_grad()
    def predict(self, hidden: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """The velocity, see `denoise`, in main memory as the arguments are."""
        device = self.worker.device
        inputs = (tensor.to(device) for tensor in (hidden, timestep, prompt))
        return self.worker.transformer(*inputs, return_dict=False)[0].cpu()


class SharedPasses(Passes):
    """Makes a part of each pass: of the tokens, and in attention of the heads (Ulysses, arXiv:2309.14509), by diffusers.

    The ranks find one another by `file`, and talk by NCCL, on CPUs by gloo, over the loopback interface.
    """

    def __init__(self, model: Model, rank: int, count: int, file: str, device: str):
        super().__init__(model, device)
        self.count = count
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # in diffusers
        for backend in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")
        if device == "cpu":
            torch.accelerator.device_count = lambda: 1  # by which diffusers divides
        distributed.init_process_group(
            "gloo" if device == "cpu" else "nccl",
            store=distributed.FileStore(file, count),
            rank=rank,
            world_size=count,
            timeout=timedelta(days=1),  # a rank that ends is noticed by the process of the stage
        )

    def load(self, phase: str, options: GenerateOptions) -> None:
        super().load(phase, options)
        transformer: Any = self.worker.transformer
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=self.count))
