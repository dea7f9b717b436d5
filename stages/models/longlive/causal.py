"""`WanTransformer3DModel`, made causal: a pass sees its frames and those that the cache kept (LongLive, arXiv:2509.22622).

The weights and their names are Wan2.1's. What differs is attention, which asks the cache, and the rotary position, which
counts frames from the start of the film. Within a pass all frames see one another: causality is how the passes are cut.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

from stages.models.longlive.cache import Cache


class CausalWan:
    """A transformer with its attention and positions replaced, that computes in `dtype`.

    `relative`: positions are those within the window, so there is no longest film; keys are then kept unrotated.
    """

    def __init__(self, transformer: WanTransformer3DModel, relative: bool = False, dtype: torch.dtype = torch.float32):
        self.transformer, self.relative, self.dtype = transformer, relative, dtype
        self.cache: Cache | None = None
        self.positions = transformer.rope
        transformer.rope = Positions(self)
        for layer, block in enumerate(transformer.blocks):
            block.attn1.set_processor(SelfAttention(self, layer))
            block.attn2.set_processor(CrossAttention(self, layer))

    def __call__(
        self, latents: torch.Tensor, timestep: float, text: torch.Tensor, cache: Cache, start: int, slots: list[int]
    ) -> torch.Tensor:
        """Velocity [B, C, F, h, w] of latents whose first frame is `start`, all at one timestep (0 to 1000)."""
        self.cache = cache
        cache.enter(start, slots)
        time = torch.full((len(latents),), timestep, device=latents.device)
        return self.transformer(latents.to(self.dtype), time, text, return_dict=False)[0]


def rotary(rope: WanRotaryPosEmbed, frames: list[int], height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, F * height * width, 1, dim] for frames at these positions, of height x width tokens."""
    tables = []
    for table in (rope.freqs_cos, rope.freqs_sin):
        time, vertical, horizontal = table.split([rope.t_dim, rope.h_dim, rope.w_dim], dim=1)
        grid = (len(frames), height, width, -1)
        parts = (
            time[frames].view(len(frames), 1, 1, -1).expand(grid),
            vertical[:height].view(1, height, 1, -1).expand(grid),
            horizontal[:width].view(1, 1, width, -1).expand(grid),
        )
        tables.append(torch.cat(parts, dim=-1).view(1, len(frames) * height * width, 1, -1))
    return tuple(tables)


class Positions(nn.Module):
    """In the place of Wan's own: the rotary tables of the queries, and of the keys, of the pass that is under way."""

    def __init__(self, model: CausalWan):
        super().__init__()
        self.model = [model]  # in a list: not a part of this

    def forward(self, hidden_states: torch.Tensor):
        (model,), (_, p_h, p_w) = self.model, self.model[0].positions.patch_size
        cache, (count, height, width) = model.cache, hidden_states.shape[2:]
        grid = height // p_h, width // p_w
        if not model.relative:
            table = at(hidden_states.device, rotary(model.positions, list(range(cache.start, cache.start + count)), *grid))
            return table, table
        order = sorted(range(len(cache.frames)), key=cache.frames.__getitem__)
        rank = {slot: position for position, slot in enumerate(order)}
        keys = rotary(model.positions, [rank[slot] for slot in range(len(cache.frames))], *grid)
        queries = rotary(model.positions, list(range(len(order) - count, len(order))), *grid)
        return at(hidden_states.device, queries), at(hidden_states.device, keys)


def at(device: torch.device, tables: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tables on a device: those of a transformer that has been made causal stay where they were."""
    return tuple(table.to(device) for table in tables)


class SelfAttention:
    _attention_backend = _parallel_config = None

    def __init__(self, model: CausalWan, layer: int):
        self.model, self.layer = model, layer

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key, value = projected(attn, hidden_states, hidden_states)
        of_queries, of_keys = rotary_emb
        if self.model.relative:
            keys, values = self.model.cache.update(self.layer, key, value)
            keys = rotated(keys, *of_keys)
        else:
            keys, values = self.model.cache.update(self.layer, rotated(key, *of_keys), value)
        return attended(attn, rotated(query, *of_queries), keys, values, backend=self._attention_backend)


class CrossAttention:
    """Keys and values of the prompt are made once."""

    _attention_backend = _parallel_config = None

    def __init__(self, model: CausalWan, layer: int):
        self.model, self.layer = model, layer

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        known = self.model.cache.cross
        if self.layer not in known:
            key, value = attn.norm_k(attn.to_k(encoder_hidden_states)), attn.to_v(encoder_hidden_states)
            known[self.layer] = key.unflatten(2, (attn.heads, -1)), value.unflatten(2, (attn.heads, -1))
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        return attended(attn, query, *known[self.layer], backend=self._attention_backend)


def projected(attn, queries: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of one sequence, keys and values of the other, [B, L, D] each: [B, L, heads, dim]."""
    query, key = attn.norm_q(attn.to_q(queries)), attn.norm_k(attn.to_k(others))
    return tuple(x.unflatten(2, (attn.heads, -1)) for x in (query, key, attn.to_v(others)))


def attended(
    attn, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None, backend=None
) -> torch.Tensor:
    """What the queries [B, L, heads, dim] find, [B, L, D]; `mask` is bool, [L, L'] or [B, 1, L, L']."""
    made = dispatch_attention_fn(query, keys, values, attn_mask=mask, backend=backend)
    return attn.to_out[1](attn.to_out[0](made.flatten(2, 3).type_as(query)))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position on interleaved pairs (arXiv:2104.09864): [B, L, heads, dim]."""
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2).type_as(x)
