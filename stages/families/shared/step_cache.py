"""Step caches by name: steps in which the blocks of a transformer are left out, by the hooks of diffusers.

- first_block: the first block works in each step. Where it adds nearly what it added in the step before, the other blocks
  are left out, and what they added together is added again (https://github.com/chengzeyi/ParaAttention).
- magcache: all blocks are left out while the error that known ratios predict stays low (Ma et al. 2025, arXiv:2506.09045).
- taylorseer: between whole steps the output is extrapolated (Liu et al. 2025, arXiv:2503.06923). It is that of the last
  layer, as in the library's lite mode: the factors of every block would not fit on a GPU.

The passes with the prompt and with the negative prompt have a cache each.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK
from diffusers.models.cache_utils import CacheMixin

from stages.families.shared.flow_options import CALIBRATE, StepCacheOptions
from stages.runtime.log import log

PROMPT, NEGATIVE = "prompt", "negative"  # names of the caches


@contextmanager
def step_cache(
    transformer: torch.nn.Module, options: StepCacheOptions, steps: int, ratios: Sequence[float]
) -> Iterator[None]:
    """In the context a transformer has the cache of the options, empty at first.

    Args:
        steps: number of steps in the context.
        ratios: magnitude ratios of these steps for magcache, which takes the nearest ones if their number is another.
    """
    if options.step_cache == "none":
        yield
        return
    cached, passes, whole = cast(CacheMixin, transformer), count_calls(transformer), count_calls(last_layer(transformer))
    cached.enable_cache(config(options, steps, ratios))
    try:
        with passes as made, whole as computed:
            yield
        log("step_cache", passes=made[0], left_out=made[0] - computed[0])
        if options.step_cache == CALIBRATE:
            log("mag_ratios", ratios=[round(ratio, 5) for ratio in measured_ratios(transformer)])
    finally:
        cached.disable_cache()


@contextmanager
def count_calls(module: torch.nn.Module) -> Iterator[list[int]]:
    """Count the calls of a module in the context, in a list of one number."""
    calls = [0]

    def count(module: torch.nn.Module, inputs: Any) -> None:
        calls[0] += 1

    handle = module.register_forward_pre_hook(count)
    try:
        yield calls
    finally:
        handle.remove()


def last_layer(transformer: torch.nn.Module) -> torch.nn.Module:
    """The feed-forward layer of the last block, which a pass reaches only if no block is left out."""
    return cast(Any, transformer).blocks[-1].ffn


def config(options: StepCacheOptions, steps: int, ratios: Sequence[float]) -> Any:
    """The library's config of a cache for a number of steps."""
    match options.step_cache:
        case "first_block":
            return FirstBlockCacheConfig(threshold=options.cache_threshold)
        case "calibrate":  # with one step more it neither prints the ratios nor drops them
            return MagCacheConfig(calibrate=True, num_inference_steps=steps + 1)
        case "magcache":
            return MagCacheConfig(
                threshold=options.cache_threshold,
                max_skip_steps=options.cache_skips if options.cache_threshold else 0,
                retention_ratio=options.cache_start,
                num_inference_steps=steps,
                mag_ratios=list(ratios),
            )
    return TaylorSeerCacheConfig(
        cache_interval=options.cache_interval,
        disable_cache_before_step=round(options.cache_start * steps),
        max_order=options.cache_order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )


def cache_of(transformer: torch.nn.Module, name: str) -> AbstractContextManager[None]:
    """In the context a pass uses the cache `name` of a transformer, PROMPT or NEGATIVE, if it has caches."""
    if getattr(transformer, "is_cache_enabled", False):
        return cast(AbstractContextManager[None], cast(CacheMixin, transformer).cache_context(name))
    return nullcontext()


def measured_ratios(transformer: torch.nn.Module) -> list[float]:
    """The ratio of each pass with the prompt to the one before, as magcache needs them (Ma et al. 2025, equation 5).

    The library only prints them and has no public accessor, hence its pinned version.
    """
    first_block: Any = cast(torch.nn.ModuleList, transformer.blocks)[0]
    hook = first_block._diffusers_hook.get_hook(_MAG_CACHE_LEADER_BLOCK_HOOK)
    return list(hook.state_manager._state_cache[PROMPT].calibration_ratios)
