"""Teacher forcing: trains a causal Wan on all blocks of a film in one pass (as in CausVid, arXiv:2412.07772).

The frames enter twice, clean and noisy. A noisy block attends to itself and to those earlier clean frames that the cache
would hold. A clean block attends to itself and to the same earlier frames. So the pass computes for each block what
generation computes with these frames in its cache. No noisy block attends to its own clean frames.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import nn

from stages.families.longlive.causal import apply_rotary_emb, attention, make_rotary_emb, project_qkv


def teacher_forcing_mask(frames: int, window: int, sink: int, block: int) -> torch.Tensor:
    """Attention mask over frames, bool [2 F, 2 F], true where the row's frame attends to the column's. Clean frames come
    first."""
    frame = torch.arange(frames)
    start = (frame // block * block)[:, None]
    end = start + block
    cached = (end <= window) | (frame < sink) | (frame >= end - (window - sink))  # while the block up to `end` is denoised
    no_noisy = torch.zeros(frames, frames, dtype=torch.bool)
    clean_rows = torch.cat([(frame < end) & cached, no_noisy], dim=1)
    noisy_rows = torch.cat([(frame < start) & cached, (frame >= start) & (frame < end)], dim=1)
    return torch.cat([clean_rows, noisy_rows])


class TeacherForcing:
    """A transformer whose attention and positions are replaced for teacher forcing on films of `frames` latent frames."""

    prompt_index: torch.Tensor  # of the current pass: the prompt of each frame, int [B, 2 F]
    prompt_length: int  # of the current pass: tokens per prompt

    def __init__(self, transformer: WanTransformer3DModel, frames: int, window: int, sink: int, block: int):
        self.transformer, self.frames = transformer, frames
        self.frame_mask = teacher_forcing_mask(frames, window, sink, block)
        transformer.rope = DoubledRotaryPosEmb(transformer.rope)
        for part in transformer.blocks:
            part.attn1.set_processor(SelfAttention(self))
            part.attn2.set_processor(CrossAttention(self))

    def __call__(
        self, clean: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, prompt_index: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity of the noisy frames, [B, C, F, h, w].

        Args:
            clean, noisy: latents [B, C, F, h, w].
            sigma: noise level of each noisy frame, [B, F].
            text: embeddings of P prompts, [B, P, L, D].
            prompt_index: the prompt of each frame, int [B, 2 F], clean frames first.
        """
        self.prompt_index, self.prompt_length = prompt_index, text.shape[2]
        hidden = torch.cat([clean, noisy], dim=2)
        tokens = hidden.shape[3] // 2 * (hidden.shape[4] // 2)
        time = torch.cat([torch.zeros_like(sigma), 1000 * sigma], dim=1).repeat_interleave(tokens, dim=1)
        velocity = self.transformer(hidden, time, text.flatten(1, 2), return_dict=False)[0]
        return velocity[:, :, self.frames :]


class DoubledRotaryPosEmb(nn.Module):
    """Rotary tables of a film whose frames enter twice."""

    def __init__(self, rope: WanRotaryPosEmbed):
        super().__init__()
        self.rope = rope

    def forward(self, hidden_states: torch.Tensor):
        _, p_h, p_w = self.rope.patch_size
        frames, height, width = hidden_states.shape[2:]
        return make_rotary_emb(self.rope, [*range(frames // 2)] * 2, height // p_h, width // p_w)


class SelfAttention:
    """Attention processor: attends to the frames that the frame mask allows."""

    def __init__(self, forcing: TeacherForcing):
        self.forcing = forcing

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key, value = project_qkv(attn, hidden_states, hidden_states)
        frame_mask = self.forcing.frame_mask.to(query.device)
        tokens = query.shape[1] // len(frame_mask)
        mask = frame_mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        return attention(attn, apply_rotary_emb(query, *rotary_emb), apply_rotary_emb(key, *rotary_emb), value, mask)


class CrossAttention:
    """Attention processor: each frame attends to its own prompt."""

    def __init__(self, forcing: TeacherForcing):
        self.forcing = forcing

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, rotary_emb=None):
        query, key, value = project_qkv(attn, hidden_states, encoder_hidden_states)
        of_frames = self.forcing.prompt_index  # [B, 2 F]
        of_keys = torch.arange(key.shape[1], device=of_frames.device) // self.forcing.prompt_length
        of_queries = of_frames.repeat_interleave(query.shape[1] // of_frames.shape[1], dim=1)
        mask = (of_queries[:, :, None] == of_keys)[:, None]
        return attention(attn, query, key, value, mask)
