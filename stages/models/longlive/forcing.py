"""A film's blocks in one pass, to train a causal Wan: teacher forcing (as in CausVid, arXiv:2412.07772).

The frames enter twice, clean and noisy. A noisy block sees itself and the clean frames before it that the cache would have
kept; a clean block sees itself and those. So the pass computes for every block what generation would with these frames in
its cache, and nothing of a block's own clean frames reaches it.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from stages.models.longlive.causal import attended, projected, rotary, rotated


def visible(frames: int, window: int, sink: int, block: int) -> torch.Tensor:
    """Which frames each frame sees, bool [2 F, 2 F]; the clean ones come first."""
    frame = torch.arange(frames)
    start = (frame // block * block)[:, None]
    end = start + block
    kept = (end <= window) | (frame < sink) | (frame >= end - (window - sink))  # while the block up to `end` is made
    nothing = torch.zeros(frames, frames, dtype=torch.bool)
    of_clean = torch.cat([(frame < end) & kept, nothing], dim=1)
    of_noisy = torch.cat([(frame < start) & kept, (frame >= start) & (frame < end)], dim=1)
    return torch.cat([of_clean, of_noisy])


class Forcing:
    """A transformer with its attention and positions replaced, for films of `frames` latent frames."""

    def __init__(self, transformer: WanTransformer3DModel, frames: int, window: int, sink: int, block: int):
        self.transformer, self.frames = transformer, frames
        self.sees = visible(frames, window, sink, block)
        self.told: torch.Tensor | None = None  # of the pass under way: the prompt of each frame, [B, 2 F]
        self.length = 0  # of a prompt
        transformer.rope = Twice(transformer.rope)
        for part in transformer.blocks:
            part.attn1.set_processor(SelfAttention(self))
            part.attn2.set_processor(CrossAttention(self))

    def __call__(
        self, clean: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, told: torch.Tensor
    ) -> torch.Tensor:
        """Velocity of the noisy frames, [B, C, F, h, w].

        `clean` and `noisy` are [B, C, F, h, w], `sigma` [B, F] is the noise of each frame. `text` [B, P, L, D] holds P
        prompts; `told` int [B, 2 F] says which of them each frame is told, the clean ones first.
        """
        self.told, self.length = told, text.shape[2]
        hidden = torch.cat([clean, noisy], dim=2)
        tokens = hidden.shape[3] // 2 * (hidden.shape[4] // 2)
        time = torch.cat([torch.zeros_like(sigma), 1000 * sigma], dim=1).repeat_interleave(tokens, dim=1)
        made = self.transformer(hidden, time, text.flatten(1, 2), return_dict=False)[0]
        return made[:, :, self.frames :]


class Twice(nn.Module):
    """Rotary tables of a film whose frames come twice."""

    def __init__(self, rope: nn.Module):
        super().__init__()
        self.rope = rope

    def forward(self, hidden_states: torch.Tensor):
        _, p_h, p_w = self.rope.patch_size
        frames, height, width = hidden_states.shape[2:]
        return rotary(self.rope, [*range(frames // 2)] * 2, height // p_h, width // p_w)


class SelfAttention:
    def __init__(self, forcing: Forcing):
        self.forcing = forcing

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key, value = projected(attn, hidden_states, hidden_states)
        sees = self.forcing.sees.to(query.device)
        tokens = query.shape[1] // len(sees)
        mask = sees.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        return attended(attn, rotated(query, *rotary_emb), rotated(key, *rotary_emb), value, mask)


class CrossAttention:
    def __init__(self, forcing: Forcing):
        self.forcing = forcing

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        told = self.forcing.told  # [B, 2 F]
        prompt = torch.arange(key.shape[1], device=told.device) // self.forcing.length
        mask = (told.repeat_interleave(query.shape[1] // told.shape[1], dim=1)[:, :, None] == prompt)[:, None]
        return attended(attn, query, key, value, mask)
