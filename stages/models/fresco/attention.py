"""The attention of FRESCO (arXiv:2403.12962) for the self-attentions of a U-Net's last two levels.

Frames look at each other's tokens, at what the input frames look alike in, and along the paths of what moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from stages.models.fresco.correspondence import Trajectories

SHARPNESS = 0.2  # keys of the spatial and the temporal guidance are scaled by it
LEVELS = ("up_blocks.2.", "up_blocks.3.")


@dataclass
class Guidance:
    """What the attentions are told about a batch of N frames; each kind of guidance can be switched off on the way.

    `masks` bool [N, P] and `paths` by their number of tokens P; `reference` by the name of the attention: hidden states
    [2 N, P, C] of the input frames. A batch has two halves, without and with the prompt.
    """

    frames: int
    masks: Mapping[int, torch.Tensor] = field(default_factory=dict)
    paths: Mapping[int, Trajectories] = field(default_factory=dict)
    reference: dict[str, torch.Tensor] = field(default_factory=dict)
    cross_frame: bool = False
    spatial: bool = False
    temporal: bool = False
    collect: bool = False  # fill `reference` instead of being led by it


def install(unet: UNet2DConditionModel, guidance: Guidance) -> None:
    """Let the self-attentions of the last two levels follow `guidance`, and all others be as they are."""
    unet.set_attn_processor(
        {
            name: FrescoAttention(name, guidance)
            if name.startswith(LEVELS) and name.endswith("attn1.processor")
            else AttnProcessor2_0()
            for name in unet.attn_processors
        }
    )


class FrescoAttention:
    """A processor of diffusers: hidden states [2 N, P, C] to the same shape."""

    def __init__(self, name: str, guidance: Guidance):
        self.name, self.guidance = name, guidance

    def __call__(
        self, attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states=None, attention_mask=None, temb=None
    ) -> torch.Tensor:
        guidance = self.guidance
        if guidance.collect:
            guidance.reference[self.name] = hidden_states.detach()
        q, k, v = (split(project(hidden_states), attn.heads) for project in (attn.to_q, attn.to_k, attn.to_v))
        led, keys, values = q, k, v
        if guidance.cross_frame:
            keys, values = (self._shared(tensor) for tensor in (k, v))
        if guidance.spatial:
            reference = guidance.reference[self.name]
            alike = (split(project(reference), attn.heads) for project in (attn.to_q, attn.to_k))
            led = alike_mixed(*alike, q)
        mixed = F.scaled_dot_product_attention(led, keys, values)
        if guidance.temporal and (paths := guidance.paths.get(hidden_states.shape[1])):
            mixed = along(paths, q, k, mixed, guidance.frames)
        return attn.to_out[1](attn.to_out[0](joined(mixed)))

    def _shared(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tokens that are new in their frame, of all frames of a half, for each of its frames; [2 N, heads, T, d]."""
        frames, mask = self.guidance.frames, self.guidance.masks.get(tensor.shape[2])
        halves = tensor.unflatten(0, (2, frames)).transpose(2, 3)  # [2, N, P, heads, d]
        kept = halves[:, 0] if mask is None else halves[:, mask]  # [2, T, heads, d]
        return kept.transpose(1, 2)[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)


def split(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, P, heads * d] to [B, heads, P, d]."""
    return tensor.unflatten(2, (heads, -1)).transpose(1, 2)


def joined(tensor: torch.Tensor) -> torch.Tensor:
    """[B, heads, P, d] to [B, P, heads * d]."""
    return tensor.transpose(1, 2).flatten(2)


def alike_mixed(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values, each mixed with those where the input frame looks alike."""
    return F.scaled_dot_product_attention(queries, SHARPNESS * keys, values)


def along(paths: Trajectories, q: torch.Tensor, k: torch.Tensor, mixed: torch.Tensor, frames: int) -> torch.Tensor:
    """What the attention made, [2 N, heads, P, d], mixed along the paths of its tokens."""
    on_paths = (gathered(tensor.unflatten(0, (2, frames)), paths.forward) for tensor in (q, k, mixed))
    queries, keys, values = (tensor.permute(0, 3, 2, 1, 4).flatten(0, 1) for tensor in on_paths)  # [2 P, heads, N, d]
    connected = paths.connected[:, None].repeat(2, 1, 1, 1)  # [2 P, 1, N, N]
    out = F.scaled_dot_product_attention(queries, SHARPNESS * keys, values, attn_mask=connected)
    out = out.unflatten(0, (2, -1)).permute(0, 3, 2, 1, 4)  # [2, N, heads, P, d]
    return gathered(out, paths.backward).flatten(0, 1)


def gathered(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens [2, N, heads, P, d] in the order that `index` [N, P] tells for each frame."""
    return tensor.gather(3, index[None, :, None, :, None].expand(*tensor.shape[:2], tensor.shape[2], -1, tensor.shape[4]))
