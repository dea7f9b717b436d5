"""A Wan transformer, loaded as the options say: precision, LoRA, placement, attention."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from diffusers import WanTransformer3DModel

from stages.models.shared.loading import DTYPES, load_network, loading, quiet
from stages.models.shared.wan.lora import merge
from stages.runtime.errors import JobError, UsageError, one_line
from stages.runtime.model import Model


def empty_transformer(config: Mapping[str, Any], source: Path) -> WanTransformer3DModel:
    """A transformer without memory for its weights. Raises UsageError for a config that makes none."""
    quiet()
    try:
        with torch.device("meta"):
            return WanTransformer3DModel.from_config(dict(config))
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UsageError(
            f"the config in {source} makes no transformer ({one_line(error)})", "give the folder that was published, whole"
        ) from error


def load_transformer(model: Model, name: str, options: Mapping[str, Any], device: torch.device) -> WanTransformer3DModel:
    """The component `name` ("transformer", "transformer_2"), ready to run on `device`.

    Raises JobError for weights that are not whole and for an attention that is not installed, ItemError for a LoRA that
    does not fit.
    """
    dtype = DTYPES[options["dtype"]]
    with loading(model):  # by dtype here, never by .to(): that would lower the modules that have to stay in float32
        transformer = load_network(WanTransformer3DModel, model.folder(), name, dtype=dtype).eval()
    lora, scale = ("lora_2", "lora_scale_2") if name == "transformer_2" else ("lora", "lora_scale")
    if options[lora]:
        merge(transformer, Path(options[lora]), options[scale])
    set_attention(transformer, options["attention_backend"], device)
    if options["layerwise_casting"] != "none":
        storage = getattr(torch, options["layerwise_casting"])
        transformer.enable_layerwise_casting(storage_dtype=storage, compute_dtype=dtype)
    if options["gpus"] > 1 and device.type == "cuda":
        return spread(transformer, [torch.device("cuda", index) for index in range(options["gpus"])])
    place(transformer, options, device)
    return transformer


def place(transformer: WanTransformer3DModel, options: Mapping[str, Any], device: torch.device) -> None:
    """Bring the weights to the device, or let groups of them come when they are needed. On a CPU they are there."""
    if options["offload"] == "none" or device.type == "cpu":
        transformer.to(device)
        return
    by_block = options["offload"] == "block_level"
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=options["offload"],
        num_blocks_per_group=options["offload_blocks"] if by_block else None,
        use_stream=options["offload_stream"],
        record_stream=options["offload_stream"],
    )


def spread(transformer: WanTransformer3DModel, devices: Sequence[torch.device]) -> WanTransformer3DModel:
    """Deal the blocks over devices, in order, and all else to the first; what goes in and comes out is there too."""
    count = len(transformer.blocks)
    places = {f"blocks.{block}": devices[block * len(devices) // count] for block in range(count)}
    others = [name for name, _ in [*transformer.named_children(), *transformer.named_parameters(recurse=False)]]
    places |= dict.fromkeys((name for name in others if name != "blocks"), devices[0])
    with warnings.catch_warnings():
        # the table of scales and shifts is no module, and is placed all the same
        warnings.filterwarnings("ignore", "The following device_map keys")
        return dispatch_model(transformer, places, main_device=devices[0], force_hooks=True)


def set_attention(transformer: WanTransformer3DModel, backend: str, device: torch.device) -> None:
    """Said for native too: the library remembers the last choice for the whole process."""
    if device.type == "cpu" and backend not in ("native", "flex"):
        raise JobError(f"attention_backend {backend} needs a GPU", "choose native")
    try:
        transformer.set_attention_backend(backend)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise JobError(
            f"attention_backend {backend} cannot be used here ({reason})", "install it or choose native"
        ) from error
