"""Low-rank matrices beside frozen linear layers: LoRA (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from stages.runtime.errors import UsageError


class LoraLinear(nn.Module):
    """A frozen linear layer W plus alpha / rank * B A, whose matrices A [rank, in] and B [out, rank] are trained in float32.

    B is zero at first, so that the layer is unchanged.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.layer, self.alpha, self.enabled = layer, alpha, True
        self.down = nn.Parameter(torch.empty(rank, layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if not self.enabled:
            return y
        low = nn.functional.linear(x.to(self.down.dtype), self.down)
        return y + (self.alpha / len(self.down) * nn.functional.linear(low, self.up)).to(y.dtype)


def add_lora(blocks: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> None:
    """Freeze a module, and put a `LoraLinear` in the place of each linear layer whose name ends in one of `targets`.

    Raises UsageError for a target that no layer has, and without a target.
    """
    if not targets:
        raise UsageError("target_modules is empty", "name the linear layers to train, such as to_q")
    blocks.requires_grad_(False)
    layers = {name: layer for name, layer in blocks.named_modules() if isinstance(layer, nn.Linear)}
    found = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets}
    if missing := [target for target, names in found.items() if not names]:
        known = dict.fromkeys(name.partition(".")[2] for name in layers)
        raise UsageError(f"target_modules names {missing[0]!r}, which is no linear layer", f"known are {', '.join(known)}")
    for name in dict.fromkeys(name for names in found.values() for name in names):
        blocks.set_submodule(name, LoraLinear(layers[name], rank, alpha))


def loras_in(module: nn.Module) -> dict[str, LoraLinear]:
    """The layers of a module that have low-rank matrices, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}


@contextmanager
def without_lora(module: nn.Module) -> Iterator[None]:
    """Within it, the layers of a module are as they were before training."""
    layers = loras_in(module).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
