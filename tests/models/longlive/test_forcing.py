"""What teacher forcing computes in one pass is what generation over the cache computes block by block."""

import pytest
import torch

from stages.models.longlive.cache import Cache
from stages.models.longlive.causal import CausalWan
from stages.models.longlive.forcing import Forcing
from tests.models.longlive.conftest import small_transformer

FRAMES, SWITCH = 15, 6


@pytest.mark.parametrize(("window", "sink", "block"), [(FRAMES, 0, 3), (9, 3, 3), (6, 1, 1), (6, 0, 3)])
@torch.no_grad()
def test_a_noisy_block_is_what_the_cache_gives(window, sink, block):
    generator = torch.Generator().manual_seed(1)
    clean, noisy = torch.randn(2, 2, 4, FRAMES, 4, 8, generator=generator)
    text = torch.randn(2, 2, 10, 16, generator=generator)
    sigma = torch.rand(2, FRAMES // block, generator=generator).repeat_interleave(block, dim=1)
    sigma[1] = sigma[0]  # a pass over the cache has one timestep
    told = (torch.arange(FRAMES) >= SWITCH).long().expand(2, -1)
    at_once = Forcing(small_transformer(), FRAMES, window, sink, block)(clean, noisy, sigma, text, told.repeat(1, 2))

    model, cache, made = CausalWan(small_transformer()), Cache(window, sink), []
    for start in range(0, FRAMES, block):
        if start == SWITCH:
            cache.forget_prompt()
        frames, prompt = slice(start, start + block), text[:, int(start >= SWITCH)]
        slots = cache.block(start, block)
        made.append(model(noisy[:, :, frames], 1000 * sigma[0, start].item(), prompt, cache, start, slots))
        model(clean[:, :, frames], 0.0, prompt, cache, start, slots)
    assert (at_once - torch.cat(made, dim=2)).abs().max() <= 5e-6
