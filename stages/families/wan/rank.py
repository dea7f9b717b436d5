"""What a rank of `generate` does: it has the same transformer with the same LoRAs, and makes passes for rank 0."""

import torch

from stages.families.wan.generate import Generate
from stages.families.wan.options import FAMILY, GenerateOptions
from stages.runtime.model import Model
from stages.runtime.resident import RESIDENTS
from stages.runtime.weights import sizes_in_memory


class NegativePasses:
    """Makes the passes with the negative prompt. Its methods are those that `Rank` calls."""

    def __init__(self, model: Model, device: str):
        self.worker = Generate(model, device)

    def load(self, phase: str, options: GenerateOptions) -> None:
        """Load the expert of a phase as rank 0 does. `options.gpus` is 1. Raises JobError, ItemError."""
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
