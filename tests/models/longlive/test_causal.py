"""Block by block over the cache is what one pass with a block-causal mask is."""

from copy import deepcopy

import pytest
import torch

from stages.models.longlive.cache import Cache
from stages.models.longlive.causal import CausalWan
from stages.models.longlive.sampler import Schedule, prefill
from tests.models.longlive.conftest import small_transformer

FRAMES, TOKENS = 21, 8  # of 2 x 4 patches
CASES = [(FRAMES, 0, 3), (12, 3, 3), (12, 0, 3), (6, 3, 3), (9, 3, 1), (7, 2, 3)]  # window, sink, block


@pytest.fixture(scope="module")
def transformer():
    return small_transformer()


@pytest.fixture(scope="module")
def given():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, FRAMES, 4, 8, generator=generator), torch.randn(2, 10, 16, generator=generator)


class Masked:
    """Attention over all frames at once, by softmax, where a mask allows it."""

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        others = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(others))
        query, key, value = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (query, key, attn.to_v(others)))
        if rotary_emb is not None:
            cos, sin = (table[0, :, 0] for table in rotary_emb)
            turn = torch.view_as_complex(torch.stack((cos[:, 0::2], sin[:, 0::2]), -1))
            query, key = (
                torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
                for x in (query, key)
            )
        weights = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if encoder_hidden_states is None:
            weights = weights.masked_fill(~self.mask, float("-inf"))
        return attn.to_out[0]((weights.softmax(-1) @ value).transpose(1, 2).flatten(2))


def block_causal(window, sink, block):
    """Which key frame a query frame sees: [F * n, F * n]."""
    frames = torch.arange(FRAMES)
    end = (frames // block + 1)[:, None] * block
    sees = (frames < end) & ((end <= window) | (frames < sink) | (frames >= end - (window - sink)))
    return sees.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)


def at_once(transformer, latents, text, mask):
    transformer.set_attn_processor(Masked(mask))
    return transformer(latents, torch.zeros(2), text, return_dict=False)[0]


@pytest.fixture
def copy():
    """A transformer that a test may change."""
    return small_transformer()


def by_blocks(model, latents, text, window, sink, block):
    cache, made = Cache(window, sink), []
    for start in range(0, FRAMES, block):
        part = latents[:, :, start : start + block]
        made.append(model(part, 0.0, text, cache, start, cache.block(start, block)))
    return torch.cat(made, dim=2)


@pytest.mark.parametrize(("window", "sink", "block"), CASES)
@torch.no_grad()
def test_block_by_block_equals_one_pass_with_a_mask(transformer, copy, given, window, sink, block):
    latents, text = given
    ours = by_blocks(CausalWan(copy), latents, text, window, sink, block)
    theirs = at_once(transformer, latents, text, block_causal(window, sink, block))
    assert (ours - theirs).abs().max() <= 5e-6
    both_ways = at_once(transformer, latents, text, torch.ones(FRAMES * TOKENS, FRAMES * TOKENS, dtype=bool))
    assert (ours - both_ways).abs().max() > 1e-2


@torch.no_grad()
def test_what_comes_later_changes_nothing_before_it(copy, given):
    latents, text = given
    model, changed = CausalWan(copy), latents.clone()
    changed[:, :, 9:] += 1
    one, other = (by_blocks(model, x, text, 12, 3, 3) for x in (latents, changed))
    assert (one[:, :, :9] == other[:, :, :9]).all() and (one[:, :, 9:] != other[:, :, 9:]).any()


@torch.no_grad()
def test_a_frame_is_forgotten_when_it_leaves_the_window_and_not_before(copy, given):
    """With window 6 and sink 3 a block of 3 sees the sinks and itself: nothing of frames 3 to 5 after the second layer."""
    latents, text = given
    model, changed = CausalWan(copy), latents.clone()
    changed[:, :, 3:6] += 1
    one, other = (by_blocks(model, x, text, 6, 3, 3) for x in (latents, changed))
    same = [(one[:, :, f] == other[:, :, f]).all().item() for f in range(FRAMES)]
    assert same == [True] * 3 + [False] * 3 + [True] * (FRAMES - 6)


@torch.no_grad()
def test_relative_positions_are_absolute_ones_until_a_frame_is_forgotten(copy, transformer, given):
    latents, text = given
    ours = by_blocks(CausalWan(copy, relative=True), latents, text, FRAMES, 0, 3)
    theirs = at_once(transformer, latents, text, block_causal(FRAMES, 0, 3))
    assert (ours - theirs).abs().max() <= 5e-6


@torch.no_grad()
def test_relative_positions_have_no_longest_film(copy, given):
    """The rotary table has 1,024 rows."""
    latents, text = given
    model, cache = CausalWan(copy, relative=True), Cache(6, 0)
    prefill(model, cache, latents[:, :, :12], text, Schedule((1.0,)), 3)
    far = deepcopy(cache)
    far.frames = [frame + 6000 for frame in cache.frames]
    near_by, far_away = (
        model(latents[:, :, 12:15], 0.0, text, memory, start, memory.block(start, 3))
        for memory, start in ((cache, 12), (far, 6012))
    )
    assert (near_by == far_away).all()


def test_memory_is_that_of_the_window(copy, given):
    latents, text = given
    cache = Cache(6, 3)
    with torch.no_grad():
        prefill(CausalWan(copy), cache, latents, text, Schedule((1.0,)), 3)
    assert {buffer.shape for pair in cache._layers.values() for buffer in pair} == {(2, 6 * TOKENS, 2, 24)}
    assert sorted(cache.frames) == [0, 1, 2, 18, 19, 20]
