"""A LoRA, merged into a transformer's weights once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from stages.runtime.errors import ItemError

ENDINGS = (".lora_A.weight", ".lora_B.weight")


@torch.no_grad()
def merge(transformer: nn.Module, weights: Mapping[str, torch.Tensor], factor: Callable[[int], float], source: Path) -> None:
    """Add to each layer factor(rank) * B A (arXiv:2106.09685), computed in float32.

    `weights` are `LAYER.lora_A.weight` [rank, in] and `LAYER.lora_B.weight` [out, rank], read from `source`. Raises
    ItemError, before anything is changed, for a layer that the transformer does not have and for other shapes.
    """
    layers = dict(transformer.named_modules())
    sums = []
    for name in sorted({name.removesuffix(ending) for name in weights for ending in ENDINGS if name.endswith(ending)}):
        down, up = (weights.get(name + ending) for ending in ENDINGS)
        weight = getattr(layers.get(name), "weight", None)
        if weight is None or down is None or up is None:
            lacks = "this transformer" if weight is None else str(source)
            raise ItemError(f"{source} does not fit this transformer ({name} is not whole in {lacks})", "give its own LoRA")
        if (up.shape[0], down.shape[1], up.shape[1]) != (*weight.shape, down.shape[0]):
            shapes = f"{name} is {list(weight.shape)}, its LoRA {list(up.shape)} and {list(down.shape)}"
            raise ItemError(f"{source} does not fit this transformer ({shapes})", "give a LoRA of this model's size")
        sums.append((weight, up, down))
    for weight, up, down in sums:
        weight.copy_(weight.float() + factor(down.shape[0]) * (up.float() @ down.float()))
