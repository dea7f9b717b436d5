"""Prepares a transformer of diffusers to run as the options say: attention backend, casting, placement, compilation."""

import warnings
from collections.abc import Sequence

import torch
from accelerate import dispatch_model
from diffusers import ModelMixin

from stages.families.shared.common_options import TransformerOptions
from stages.families.shared.compiling import compile_blocks
from stages.families.shared.loading import weights_size
from stages.runtime import memory
from stages.runtime.errors import JobError, one_line
from stages.runtime.log import log

SPARE = 4 * 2**30  # bytes of main memory that stay free beside the pinned copy of offloaded weights


def is_whole_on_device(options: TransformerOptions) -> bool:
    """Whether `prepare_transformer` puts all weights on one device as they are, so that they can be loaded there."""
    as_they_are = options.layerwise_casting == "none" and options.quantization == "none"
    return options.offload == "none" and as_they_are and options.gpus == 1


def prepare_transformer(
    transformer: ModelMixin,
    options: TransformerOptions,
    dtype: torch.dtype,
    device: torch.device,
    leaves_out_blocks: bool = False,
) -> ModelMixin:
    """Prepare a transformer to compute in `dtype` on `device`, as the options say.

    If passes may leave out blocks, offloaded weights move without a stream, which relies on the order of the blocks.
    Raises JobError for an attention backend or a quantisation that is not installed.
    """
    set_attention(transformer, options.attention_backend, device)
    if options.layerwise_casting != "none":
        storage = getattr(torch, options.layerwise_casting)
        transformer.enable_layerwise_casting(storage_dtype=storage, compute_dtype=dtype)
    if options.quantization != "none":
        quantise(transformer, options.quantization, device)
    if options.gpus > 1 and device.type == "cuda":
        return spread(transformer, [torch.device("cuda", index) for index in range(options.gpus)])
    stream = False if leaves_out_blocks else options.offload_stream
    place(transformer, device, options.offload, options.offload_blocks, stream)
    if options.compile == "blocks":
        compile_blocks(transformer)
    return transformer


def quantise(transformer: ModelMixin, kind: str, device: torch.device) -> None:
    """Store the weights of the blocks' linear layers in 8 bits, layer by layer on the device, by torchao's configs.

    A row of a weight is its 8 bits times a scale. Raises JobError if torchao is not installed.
    """
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise JobError(
            f"quantization {kind} needs torchao, which cannot be used here ({one_line(error)})",
            "install it: pip install 'kinemake[torchao]', or set quantization to none",
        ) from error
    config = {"int8_weight_only": Int8WeightOnlyConfig, "float8_weight_only": Float8WeightOnlyConfig}[kind]
    blocks = [module for module in transformer.modules() if type(module).__name__ in transformer._repeated_blocks]
    for block in blocks:
        quantize_(block, config(set_inductor_config=False), device=device)


def place(
    transformer: ModelMixin, device: torch.device, offload: str = "none", blocks: int = 1, stream: bool | None = None
) -> None:
    """Move the weights to the device, or offload them: groups of layers then move there when they are needed.

    `offload` is "none" or one of diffusers' types: "block_level" for groups of `blocks` blocks, "leaf_level" for single
    layers. With a `stream` the next group moves while one computes, from a copy of the weights in pinned main memory; None
    stands for a stream if main memory has room for the copy. On a CPU these have no effect.
    """
    if offload == "none" or device.type == "cpu":
        transformer.to(device)
        return
    if stream is None:
        stream = weights_size(transformer) + SPARE <= memory.main_memory()
    if stream and offload == "block_level" and blocks > 1:
        reason = f"offload_blocks is {blocks}, and with a stream blocks move one by one"
        log("warning", reason=reason, remedy="set offload_stream to false for groups of blocks, which takes longer")
        blocks = 1
    transformer.enable_group_offload(
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=offload,
        num_blocks_per_group=blocks if offload == "block_level" else None,
        use_stream=stream,
        record_stream=stream,
    )


def spread(transformer: ModelMixin, devices: Sequence[torch.device]) -> ModelMixin:
    """Spread the blocks over devices, in order. All other layers, the inputs and the outputs are on the first device."""
    repeated = transformer._repeated_blocks  # names of the blocks' classes, which diffusers declares for compilation
    blocks = [name for name, module in transformer.named_modules() if type(module).__name__ in repeated]
    places = {block: devices[number * len(devices) // len(blocks)] for number, block in enumerate(blocks)}
    others = [name for name, _ in [*transformer.named_children(), *transformer.named_parameters(recurse=False)]]
    lists = {block.partition(".")[0] for block in blocks}
    places |= dict.fromkeys((name for name in others if name not in lists), devices[0])
    with warnings.catch_warnings():
        # the warning is about scale_shift_table: it is no module, yet it is placed
        warnings.filterwarnings("ignore", "The following device_map keys")
        return dispatch_model(transformer, places, main_device=devices[0], force_hooks=True)


def set_attention(transformer: ModelMixin, backend: str, device: torch.device) -> None:
    """Set the attention backend, native too: diffusers keeps the last choice for the whole process.

    Raises JobError for a backend that cannot be used.
    """
    if device.type == "cpu" and backend not in ("native", "flex"):
        raise JobError(f"attention_backend {backend} needs a GPU", "choose native")
    try:
        transformer.set_attention_backend(backend)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise JobError(
            f"attention_backend {backend} cannot be used here ({reason})", "install it or choose native"
        ) from error
