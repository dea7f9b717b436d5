"""A LoRA of LongLive, merged into the transformer once."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.runtime.errors import ItemError, one_line


@torch.no_grad()
def merge(transformer: WanTransformer3DModel, path: Path, alpha: float) -> None:
    """Add a LoRA to the weights, W + alpha / rank * B A (arXiv:2106.09685), computed in float32.

    `path` has `MODULE.lora_A.weight` [rank, in] and `MODULE.lora_B.weight` [out, rank] by diffusers' names, as convert
    writes them. Raises ItemError for a file that cannot be read, and for weights that are not those of this transformer.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ItemError(f"{path} cannot be read ({one_line(error)})", "give the LoRA that convert wrote") from error
    modules = dict(transformer.named_modules())
    names = {name.rpartition(".lora_")[0] for name in weights}
    for name in sorted(names):
        down, up = weights.get(f"{name}.lora_A.weight"), weights.get(f"{name}.lora_B.weight")
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or down is None or up is None or (up.shape[0], down.shape[1]) != weight.shape:
            raise ItemError(
                f"{name or next(iter(weights), 'nothing')} of {path} does not fit this transformer", "give its own LoRA"
            )
        if up.shape[1] != down.shape[0]:
            raise ItemError(
                f"{name} of {path} has ranks {down.shape[0]} and {up.shape[1]}", "the file is damaged: make it again"
            )
        weight.copy_(weight.float() + alpha / down.shape[0] * (up.float() @ down.float()))
