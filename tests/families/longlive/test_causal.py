"""Generation block by block over the cache equals one pass with a block-causal mask."""

from copy import deepcopy

import pytest
import torch
from torch._dynamo.utils import counters

from stages.families.longlive.cache import Cache
from stages.families.longlive.causal import CausalWan
from stages.families.longlive.sampler import Schedule, prefill
from stages.families.shared import compiling
from tests.families.longlive.conftest import small_transformer

FRAMES, TOKENS = 21, 8  # tokens per frame: 2 x 4 patches
CASES = [(FRAMES, 0, 3), (12, 3, 3), (12, 0, 3), (6, 3, 3), (9, 3, 1), (7, 2, 3)]  # window, sink, block


@pytest.fixture(scope="module")
def transformer():
    return small_transformer()


@pytest.fixture(scope="module")
def inputs():
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
    """The mask of the keys that each query attends to, bool [F * n, F * n]."""
    frames = torch.arange(FRAMES)
    end = (frames // block + 1)[:, None] * block
    sees = (frames < end) & ((end <= window) | (frames < sink) | (frames >= end - (window - sink)))
    return sees.repeat_interleave(TOKENS, 0).repeat_interleave(TOKENS, 1)


def run_at_once(transformer, latents, text, mask):
    transformer.set_attn_processor(Masked(mask))
    return transformer(latents, torch.zeros(2), text, return_dict=False)[0]


@pytest.fixture
def copy():
    """A transformer that a test may change."""
    return small_transformer()


def run_by_blocks(model, latents, text, window, sink, block):
    cache, outputs = Cache(window, sink), []
    for start in range(0, FRAMES, block):
        part = latents[:, :, start : start + block]
        outputs.append(model(part, 0.0, text, cache, start, cache.block_slots(start, block)))
    return torch.cat(outputs, dim=2)


@pytest.mark.parametrize(("window", "sink", "block"), CASES)
@torch.no_grad()
def test_causal_blocks_equal_one_pass_with_a_mask(transformer, copy, inputs, window, sink, block):
    latents, text = inputs
    ours = run_by_blocks(CausalWan(copy), latents, text, window, sink, block)
    theirs = run_at_once(transformer, latents, text, block_causal(window, sink, block))
    assert (ours - theirs).abs().max() <= 5e-6
    bidirectional = run_at_once(transformer, latents, text, torch.ones(FRAMES * TOKENS, FRAMES * TOKENS, dtype=bool))
    assert (ours - bidirectional).abs().max() > 1e-2


@torch.no_grad()
def test_later_frames_change_no_earlier_ones(copy, inputs):
    latents, text = inputs
    model, changed = CausalWan(copy), latents.clone()
    changed[:, :, 9:] += 1
    first, second = (run_by_blocks(model, x, text, 12, 3, 3) for x in (latents, changed))
    assert (first[:, :, :9] == second[:, :, :9]).all() and (first[:, :, 9:] != second[:, :, 9:]).any()


@torch.no_grad()
def test_a_frame_has_an_effect_until_it_leaves_the_window(copy, inputs):
    """With window 6 and sink 3, a block of 3 attends to the sinks and itself: frames 3 to 5 have no later effect."""
    latents, text = inputs
    model, changed = CausalWan(copy), latents.clone()
    changed[:, :, 3:6] += 1
    first, second = (run_by_blocks(model, x, text, 6, 3, 3) for x in (latents, changed))
    same = [(first[:, :, f] == second[:, :, f]).all().item() for f in range(FRAMES)]
    assert same == [True] * 3 + [False] * 3 + [True] * (FRAMES - 6)


@torch.no_grad()
def test_relative_positions_equal_absolute_ones_within_the_window(copy, transformer, inputs):
    latents, text = inputs
    ours = run_by_blocks(CausalWan(copy, relative=True), latents, text, FRAMES, 0, 3)
    theirs = run_at_once(transformer, latents, text, block_causal(FRAMES, 0, 3))
    assert (ours - theirs).abs().max() <= 5e-6


@torch.no_grad()
def test_relative_positions_have_no_length_limit(copy, inputs):
    """The rotary table has 1,024 rows."""
    latents, text = inputs
    model, cache = CausalWan(copy, relative=True), Cache(6, 0)
    prefill(model, cache, latents[:, :, :12], text, Schedule((1.0,)), 3)
    shifted_cache = deepcopy(cache)
    shifted_cache.frames = [frame + 6000 for frame in cache.frames]
    near_by, far_away = (
        model(latents[:, :, 12:15], 0.0, text, memory, start, memory.block_slots(start, 3))
        for memory, start in ((cache, 12), (shifted_cache, 6012))
    )
    assert (near_by == far_away).all()


def test_cache_memory_is_that_of_the_window(copy, inputs):
    latents, text = inputs
    cache = Cache(6, 3)
    with torch.no_grad():
        prefill(CausalWan(copy), cache, latents, text, Schedule((1.0,)), 3)
    assert {buffer.shape for layer in cache.layers for buffer in (layer.keys, layer.values)} == {(2, 6 * TOKENS, 2, 24)}
    assert sorted(cache.frames) == [0, 1, 2, 18, 19, 20]


@pytest.mark.parametrize("relative", [False, True])
@torch.no_grad()
def test_a_film_is_compiled_once_for_all_layers_and_for_each_fill_of_the_window(relative, inputs, monkeypatch):
    """Up to a full window of three blocks, and once more after a prompt was read. The prompt is read again at a switch."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    (latents, text), films, graphs = inputs, [], []
    torch._dynamo.reset()
    counters.clear()
    for compiled in (False, True):
        transformer, cache, film = small_transformer(), Cache(9, 3), []
        model = CausalWan(transformer, relative)
        if compiled:
            compiling.compile_blocks(transformer)
        for start in range(0, FRAMES, 3):
            if start == 15:
                cache.clear_cross_attention()
            for _ in range(2):
                slots = cache.block_slots(start, 3)
                film.append(model(latents[:, :, start : start + 3], 0.0, text, cache, start, slots))
            graphs.append(counters["stats"]["unique_graphs"])
        films.append(torch.cat(film, dim=2))
    torch._dynamo.reset()
    assert torch.equal(*films) and not counters["graph_break"]
    assert graphs[7:] == [2, 3, 4, 4, 4, 5, 5]
