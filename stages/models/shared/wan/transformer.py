"""A Wan transformer, loaded as the options say: precision, LoRA, placement, attention."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model
from diffusers import WanTransformer3DModel
from diffusers.loaders import WanLoraLoaderMixin
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.models.shared.loading import DTYPES, load_network, loading, quiet
from stages.models.shared.wan.lora import ENDINGS, merge
from stages.runtime.errors import ItemError, JobError, UsageError, one_line
from stages.runtime.log import log
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
        fuse_lora(transformer, Path(options[lora]), options[scale])
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


def fuse_lora(transformer: WanTransformer3DModel, path: Path, scale: float) -> None:
    """Add `scale` times a LoRA's weights to the transformer's own; an alpha in the file is in its weights.

    Takes diffusers' names and those of the usual trainers. Raises ItemError for a file that cannot be read or has no
    weights for this transformer; tells the log of names that it had to leave out.
    """
    try:
        weights = WanLoraLoaderMixin.lora_state_dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = one_line(error)
        raise ItemError(f"{path} is not a LoRA of Wan ({reason})", "give a LoRA in safetensors format") from error
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    modules = {name for name, _ in transformer.named_modules()}
    fitting = {
        name: tensor for name, tensor in weights.items() if name.endswith(ENDINGS) and name.split(".lora")[0] in modules
    }
    if not fitting:
        raise ItemError(
            f"{path} has no weights for this transformer (its first is {next(iter(weights), 'none')})",
            "give a LoRA that was trained for this model",
        )
    if left := sorted(weights.keys() - fitting.keys()):
        log("lora", file=str(path), fused=len(fitting), left_out=len(left), first_left_out=left[0])
    merge(transformer, fitting, lambda rank: scale, path)
