"""Makes a Wan transformer: without weights, or loaded from a repository with LoRA files merged into it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from stages.families.shared.loading import load_network, loading, quiet
from stages.families.shared.wan.lora import Lora, merge
from stages.runtime.errors import UsageError, one_line
from stages.runtime.model import Model


def empty_transformer(config: Mapping[str, Any], source: Path) -> WanTransformer3DModel:
    """Make a transformer on the meta device. Raises UsageError for an invalid config and names its `source`."""
    quiet()
    try:
        with torch.device("meta"):
            return WanTransformer3DModel.from_config(dict(config))
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UsageError(
            f"the config in {source} makes no transformer ({one_line(error)})",
            "give the complete folder as it was published",
        ) from error


def load_transformer(
    model: Model,
    name: str,
    dtype: torch.dtype,
    loras: Sequence[Lora] = (),
    *,
    device: torch.device,
    whole: bool = True,
) -> WanTransformer3DModel:
    """Load the component `name` ("transformer" or "transformer_2") and merge LoRA files into it.

    The weights go to the device, unless they are not to be `whole` there: then they are in main memory, and only the sums of
    the LoRA files are computed on the device. Raises JobError for incomplete weights, ItemError for a LoRA that does not
    fit.
    """
    target = device if whole else torch.device("cpu")
    with loading(model):  # by dtype here, never by .to(), which would also convert the modules that have to stay in float32
        transformer = load_network(WanTransformer3DModel, model.folder(), name, target, dtype=dtype).eval()
    merge(transformer, loras, device)
    return transformer
