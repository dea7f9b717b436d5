"""Options that several families share."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from stages.runtime.errors import UsageError, shown
from stages.runtime.options import GPUS, PARALLEL, GpusOption, Options, default_parallel, option


class SeedOption(Options):
    seed: int = option(
        lambda variant, values: secrets.randbelow(2**31),
        "Seed of the noise",
        minimum=0,
        maximum=2**63 - 4096,
        default_text="drawn at random, and kept",
    )


class PromptOptions(Options):
    prompt: str = option("", "Prompt of the clip; it takes precedence over a caption file", set_by_recipe=True)
    negative_prompt: str = option("", "Negative prompt: what the clip should not show")


class CompileOption(Options):
    compile: str = option(
        "none",
        "Compile the blocks of the transformer, which takes minutes once for each size of clips and makes every pass "
        "faster; changes the last digits",
        choices=("none", "blocks"),
        neutral="none",
        reloads=True,
    )


class TransformerOptions(GpusOption, CompileOption):
    """How to run a transformer of diffusers, see shared/transformer.py."""

    offload: str = option(
        "none",
        "Keep the transformer in main memory and move it to the GPU by groups of blocks or by single layers",
        choices=("none", "block_level", "leaf_level"),
        changes_result=False,
        reloads=True,
        offloads=("block_level", "leaf_level"),
    )
    offload_blocks: int = option(
        1,
        "Blocks per group with offload block_level and no stream",
        minimum=1,
        changes_result=False,
        reloads=True,
        maximum=1000,
    )
    offload_stream: bool | None = option(
        None,
        "With offload, move the next group while one computes, from a copy of the weights in pinned main memory. "
        "Blocks then move one by one",
        default_text="where main memory has room for the copy",
        changes_result=False,
        reloads=True,
    )
    layerwise_casting: str = option(
        "none",
        "Store the transformer's weights in 8 bits and compute in dtype: halves the memory, changes the result slightly",
        choices=("none", "float8_e4m3fn", "float8_e5m2"),
        reloads=True,
        stores=("float8_e4m3fn", "float8_e5m2"),
    )
    quantization: str = option(
        "none",
        "Store the linear layers of the transformer's blocks in 8 bits by torchao (int8, or float8_e4m3fn), with a scale "
        "per row, and compute in dtype: halves the memory, changes the result slightly. LoRA files are merged before",
        choices=("none", "int8_weight_only", "float8_weight_only"),
        neutral="none",
        reloads=True,
        stores=("int8_weight_only", "float8_weight_only"),
    )
    attention_backend: str = option(
        "native",
        "Implementation of attention, by diffusers' name; all but native need a package or a GPU that supports them",
        choices=(
            "native",
            "_native_cudnn",
            "_native_efficient",
            "_native_flash",
            "flash",
            "_flash_3",
            "flex",
            "sage",
            "xformers",
        ),
        reloads=True,
    )


def check_transformer(values: Mapping[str, Any]) -> None:
    """Raise UsageError for options of a transformer that do not go together."""
    if values["compile"] != "none" and (name := first_misfit(values, WITH_COMPILE)):
        raise UsageError(
            f"compile is {values['compile']} and {name} is {shown(values[name])}, which do not go together",
            f"leave one of them out, or set {name} to {shown(WITH_COMPILE[name][0])}",
        )
    if values["quantization"] != "none" and (name := first_misfit(values, WITH_QUANTIZATION)):
        raise UsageError(
            f"quantization is {values['quantization']} and {name} is {values[name]}, which do not go together",
            f"leave one of them out, or set {name} to {WITH_QUANTIZATION[name][0]}",
        )


def first_misfit(values: Mapping[str, Any], fitting: Mapping[str, Sequence[Any]]) -> str:
    """The first option whose value is not among those that are `fitting`; "" if there is none."""
    return next((name for name, allowed in fitting.items() if values[name] not in allowed), "")


# the values of other options that go with each
WITH_COMPILE: dict[str, tuple] = {  # no hooks on the blocks
    "offload": ("none",),
    "layerwise_casting": ("none",),
    "quantization": ("none",),
    "step_cache": ("none",),
    "skip_layers": ([],),
    GPUS: (1,),
}
WITH_QUANTIZATION: dict[str, tuple] = {"layerwise_casting": ("none",), GPUS: (1,)}
WITH_ULYSSES: dict[str, tuple] = {
    "offload": ("none",),
    "layerwise_casting": ("none",),
    "skip_layers": ([],),
    "attention_backend": ("native", "_native_cudnn", "_native_flash", "flash", "sage"),  # of diffusers' context parallelism
}


def check_parallel(values: Mapping[str, Any], scales: Sequence[float]) -> None:
    """Raise UsageError for a number of GPUs that cannot share a clip as `parallel` says.

    `scales` are the guidance scales of the experts.
    """
    gpus, parallel = values[GPUS], values[PARALLEL]
    if gpus == 1 and parallel != default_parallel("", values):
        raise UsageError(f"parallel is {parallel} and gpus is 1", "leave parallel out, or set gpus to 2")
    if parallel == "cfg" and gpus > 2:
        raise UsageError(
            f"parallel is cfg and gpus is {gpus}, and a step has two passes", "set gpus to 2, or parallel to ulysses"
        )
    if parallel == "cfg" and max(scales) <= 1:
        raise UsageError(
            f"gpus is 2 and guidance_scale {max(scales)} switches guidance off, so a step has one pass",
            "set parallel to ulysses, or gpus to 1",
        )
    if parallel == "ulysses" and (name := first_misfit(values, WITH_ULYSSES)):
        raise UsageError(
            f"parallel is ulysses and {name} is {shown(values[name])}, which do not go together",
            f"leave {name} out, or set parallel to layers",
        )
