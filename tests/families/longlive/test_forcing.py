"""Teacher forcing in one pass equals generation over the cache block by block."""

import pytest
import torch

from stages.families.longlive.cache import Cache
from stages.families.longlive.causal import CausalWan
from stages.families.longlive.forcing import TeacherForcing
from tests.families.longlive.conftest import small_transformer

FRAMES, SWITCH = 15, 6


@pytest.mark.parametrize(("window", "sink", "block"), [(FRAMES, 0, 3), (9, 3, 3), (6, 1, 1), (6, 0, 3)])
@torch.no_grad()
def test_teacher_forcing_equals_generation_over_the_cache(window, sink, block):
    generator = torch.Generator().manual_seed(1)
    clean, noisy = torch.randn(2, 2, 4, FRAMES, 4, 8, generator=generator)
    text = torch.randn(2, 2, 10, 16, generator=generator)
    sigma = torch.rand(2, FRAMES // block, generator=generator).repeat_interleave(block, dim=1)
    sigma[1] = sigma[0]  # because a pass over the cache has one timestep
    prompt_index = (torch.arange(FRAMES) >= SWITCH).long().expand(2, -1)
    at_once = TeacherForcing(small_transformer(), FRAMES, window, sink, block)(
        clean, noisy, sigma, text, prompt_index.repeat(1, 2)
    )

    model, cache, outputs = CausalWan(small_transformer()), Cache(window, sink), []
    for start in range(0, FRAMES, block):
        if start == SWITCH:
            cache.clear_cross_attention()
        frames, prompt = slice(start, start + block), text[:, int(start >= SWITCH)]
        slots = cache.block_slots(start, block)
        outputs.append(model(noisy[:, :, frames], 1000 * sigma[0, start].item(), prompt, cache, start, slots))
        model(clean[:, :, frames], 0.0, prompt, cache, start, slots)
    assert (at_once - torch.cat(outputs, dim=2)).abs().max() <= 5e-6
