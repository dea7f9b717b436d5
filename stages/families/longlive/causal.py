"""A causal `WanTransformer3DModel`: a pass attends to its own frames and to the cached ones (LongLive, arXiv:2509.22622).

The weights and their names are those of Wan2.1. Self-attention reads the cache, and the rotary positions count frames from
the start of the film. Within a pass all frames attend to each other: the division of a film into passes makes it causal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

from stages.families.longlive.cache import Cache, LayerCache


class CausalWan:
    """A transformer whose attention processors and rotary embedding are replaced by causal ones. It computes in `dtype`.

    With `relative`, positions count within the window, so that the length of a film has no limit. The cache then holds keys
    before their rotation.
    """

    cache: Cache  # the cache of the current pass

    def __init__(self, transformer: WanTransformer3DModel, relative: bool = False, dtype: torch.dtype = torch.float32):
        self.transformer, self.relative, self.dtype = transformer, relative, dtype
        self.rope = transformer.rope
        transformer.rope = CausalRotaryPosEmb(self)
        for block in transformer.blocks:
            block.attn1.set_processor(SelfAttention(relative))
            block.attn2.set_processor(CrossAttention())

    def __call__(
        self, latents: torch.Tensor, timestep: float, text: torch.Tensor, cache: Cache, start: int, slots: list[int]
    ) -> torch.Tensor:
        """Predict the velocity [B, C, F, h, w] of latents whose first frame is `start`, all at one timestep (0 to 1000).

        Writes the keys and values of the frames to `slots` of the cache.
        """
        self.cache, hidden = cache, latents.to(self.dtype)
        cache.begin_pass(start, slots)
        if not cache.layers:
            self._give_layers([None] * len(self.transformer.blocks))  # the buffers of another film are freed before
            self._allocate(hidden)
        self._give_layers(cache.layers)
        time = torch.full((len(latents),), timestep, device=latents.device)
        return self.transformer(hidden, time, text, return_dict=False)[0]

    def _allocate(self, hidden: torch.Tensor) -> None:
        """Make the buffers of the cache, for latents of this shape [B, C, F, h, w], precision and device."""
        config = self.transformer.config
        _, p_h, p_w = config.patch_size
        n = (hidden.shape[3] // p_h) * (hidden.shape[4] // p_w)
        heads, dim = config.num_attention_heads, config.attention_head_dim
        self.cache.allocate(config.num_layers, len(hidden), n, heads, dim, hidden)

    def _give_layers(self, layers: Sequence[LayerCache | None]) -> None:
        for block, layer in zip(self.transformer.blocks, layers, strict=True):
            block.attn1.processor.cache = block.attn2.processor.cache = layer


def make_rotary_emb(
    rope: WanRotaryPosEmbed, frames: list[int], height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each [1, F * height * width, 1, dim], for frames at these positions, of height x width tokens.

    They are made where the tables of `rope` are.
    """

    def of_tokens(table: torch.Tensor) -> torch.Tensor:
        time, vertical, horizontal = table.split([rope.t_dim, rope.h_dim, rope.w_dim], dim=1)
        grid = (len(frames), height, width, -1)
        parts = (
            time[frames].view(len(frames), 1, 1, -1).expand(grid),
            vertical[:height].view(1, height, 1, -1).expand(grid),
            horizontal[:width].view(1, 1, width, -1).expand(grid),
        )
        return torch.cat(parts, dim=-1).view(1, len(frames) * height * width, 1, -1)

    return of_tokens(rope.freqs_cos), of_tokens(rope.freqs_sin)


class Positions(NamedTuple):
    """Where the tokens of a pass are: rotary tables of its queries and of its keys, and their places in the cache.

    Its passes over all layers have the same ones.
    """

    queries: tuple[torch.Tensor, torch.Tensor]
    keys: tuple[torch.Tensor, torch.Tensor]
    places: torch.Tensor
    length: int  # tokens in the cache


class CausalRotaryPosEmb(nn.Module):
    """Replaces `WanRotaryPosEmbed`: returns the `Positions` of the current pass.

    All passes over a block have the same, which are kept until another block, size or device needs others.
    """

    def __init__(self, model: CausalWan):
        super().__init__()
        self.model = model
        self.positions: Positions | None = None
        self.made_for: Any = None

    def forward(self, hidden_states: torch.Tensor) -> Positions:
        _, p_h, p_w = self.model.rope.patch_size
        count, height, width = hidden_states.shape[2:]
        (queries, keys), grid, device = self._frames(count), (height // p_h, width // p_w), hidden_states.device
        cache, n = self.model.cache, math.prod(grid)
        wanted = queries, keys, grid, device, cache.slots, len(cache.frames)
        if self.positions is None or self.made_for != wanted:
            rope = self.model.rope.to(device)  # `transformer.to` does not move it, since this module has replaced it
            of_queries = make_rotary_emb(rope, queries, *grid)
            of_keys = of_queries if keys == queries else make_rotary_emb(rope, keys, *grid)
            places = cache.places(n).to(device)
            self.positions, self.made_for = Positions(of_queries, of_keys, places, len(cache.frames) * n), wanted
        return self.positions

    def _frames(self, count: int) -> tuple[list[int], list[int]]:
        """Positions of the frames of the queries, which are the latest `count`, and of those of the keys."""
        cache = self.model.cache
        if not self.model.relative:
            frames = list(range(cache.start, cache.start + count))
            return frames, frames
        cached = len(cache.frames)
        slots_in_order = sorted(range(cached), key=cache.frames.__getitem__)
        position_of = {slot: position for position, slot in enumerate(slots_in_order)}
        return list(range(cached - count, cached)), [position_of[slot] for slot in range(cached)]


class SelfAttention:
    """Attention processor: attends to the frames of the pass and to the cached frames."""

    _attention_backend = _parallel_config = None
    cache: LayerCache

    def __init__(self, relative: bool):
        self.relative = relative

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key, value = project_qkv(attn, hidden_states, hidden_states)
        queries, keys, places, length = rotary_emb
        key = key if self.relative else apply_rotary_emb(key, *keys)
        all_keys, all_values = self.cache.update(key, value, places, length)
        all_keys = apply_rotary_emb(all_keys, *keys) if self.relative else all_keys
        return attention(attn, apply_rotary_emb(query, *queries), all_keys, all_values, backend=self._attention_backend)


class CrossAttention:
    """Attention processor: attends to the prompt, whose keys and values are computed once and cached."""

    _attention_backend = _parallel_config = None
    cache: LayerCache

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        if self.cache.prompt is None:
            key, value = attn.norm_k(attn.to_k(encoder_hidden_states)), attn.to_v(encoder_hidden_states)
            self.cache.prompt = key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        return attention(attn, query, *self.cache.prompt, backend=self._attention_backend)


def project_qkv(
    attn: Any, hidden_states: torch.Tensor, context: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [B, L, heads, dim] of `hidden_states` [B, L, D]; keys and values [B, M, heads, dim] of `context` [B, M, D]."""
    query, key, value = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(context)), attn.to_v(context)
    heads = (attn.heads, -1)
    return query.unflatten(2, heads), key.unflatten(2, heads), value.unflatten(2, heads)


def attention(
    attn: Any,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
    backend: Any = None,
) -> torch.Tensor:
    """Attention of queries [B, L, heads, dim] with the output projection, [B, L, D].

    `mask` is bool [L, L'] or [B, 1, L, L'], true where a query attends to a key.
    """
    hidden_states = dispatch_attention_fn(query, keys, values, attn_mask=mask, backend=backend)
    return attn.to_out[1](attn.to_out[0](hidden_states.flatten(2, 3).type_as(query)))


def apply_rotary_emb(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate interleaved pairs of x [B, L, heads, dim] by their positions (rotary embedding, arXiv:2104.09864)."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2).type_as(x)
