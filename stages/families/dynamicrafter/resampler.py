"""Image projector: image tokens to the context tokens of each frame, by a Perceiver (Jaegle et al. 2021, arXiv:2103.03206).

Module names are those of the published checkpoints.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class Resampler(ModelMixin, ConfigMixin):
    """Tokens [B, N, embedding_dim] of an image to tokens [B, num_queries * video_length, output_dim], frame by frame.

    The defaults are those of the published models.
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 1024,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 16,
        embedding_dim: int = 1280,
        output_dim: int = 1024,
        ff_mult: int = 4,
        video_length: int = 16,
    ):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, num_queries * video_length, dim) / dim**0.5)
        self.proj_in, self.proj_out = nn.Linear(embedding_dim, dim), nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(dim, dim_head, heads), feed_forward(dim, ff_mult)]) for _ in range(depth)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens, latents = self.proj_in(tokens), self.latents.expand(len(tokens), -1, -1)
        for layer in self.layers:
            attention, ff = cast(nn.ModuleList, layer)
            latents = latents + attention(tokens, latents)
            latents = latents + ff(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    """Attention of latents [B, M, C] to tokens [B, N, C] and to themselves."""

    def __init__(self, dim: int, dim_head: int, heads: int):
        super().__init__()
        self.heads, inner = heads, dim_head * heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        tokens, latents = self.norm1(tokens), self.norm2(latents)
        keys, values = self.to_kv(torch.cat([tokens, latents], dim=1)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(latents), keys, values))
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def feed_forward(dim: int, mult: int) -> nn.Sequential:
    """A feed-forward layer with `mult` times as many hidden channels."""
    inner = dim * mult
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, inner, bias=False), nn.GELU(), nn.Linear(inner, dim, bias=False))
