"""The attention of FRESCO (arXiv:2403.12962) for the self-attentions of a U-Net's last two levels.

Three kinds of guidance: efficient cross-frame attention (keys and values of all frames), spatial-guided attention (by the
self-similarity of the input frames) and temporal-guided attention (along trajectories of the optical flow).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from stages.families.fresco.correspondence import Trajectories

KEY_SCALE = 0.2  # of the keys in spatial- and temporal-guided attention
LEVELS = ("up_blocks.2.", "up_blocks.3.")


@dataclass
class Guidance:
    """State that the attention processors share: the masks and trajectories of a batch of N frames, and what is switched on.

    `masks` bool [N, P] and `paths` are keyed by the number of tokens P of a frame. `reference` is keyed by the name of the
    attention: hidden states [2 N, P, C] of the input frames. A batch has two halves, without and with the prompt.
    """

    frames: int
    masks: Mapping[int, torch.Tensor] = field(default_factory=dict)
    paths: Mapping[int, Trajectories] = field(default_factory=dict)
    reference: dict[str, torch.Tensor] = field(default_factory=dict)
    cross_frame: bool = False
    spatial: bool = False
    temporal: bool = False
    collect: bool = False  # store hidden states in `reference`


def install(unet: UNet2DConditionModel, guidance: Guidance) -> None:
    """Set FRESCO's processors on the self-attentions of the last two levels, and the default processor on all others."""
    unet.set_attn_processor(
        {
            name: FrescoAttention(name, guidance)
            if name.startswith(LEVELS) and name.endswith("attn1.processor")
            else AttnProcessor2_0()
            for name in unet.attn_processors
        }
    )


class FrescoAttention:
    """An attention processor of diffusers: hidden states [2 N, P, C] to the same shape."""

    def __init__(self, name: str, guidance: Guidance):
        self.name, self.guidance = name, guidance

    def __call__(
        self, attn: Attention, hidden_states: torch.Tensor, encoder_hidden_states=None, attention_mask=None, temb=None
    ) -> torch.Tensor:
        guidance = self.guidance
        if guidance.collect:
            guidance.reference[self.name] = hidden_states.detach()
        q, k, v = (split_heads(project(hidden_states), attn.heads) for project in (attn.to_q, attn.to_k, attn.to_v))
        queries, keys, values = q, k, v
        if guidance.cross_frame:
            keys, values = (self._efficient_cross_frame_tokens(tensor) for tensor in (k, v))
        if guidance.spatial:
            reference = guidance.reference[self.name]
            reference_q, reference_k = (split_heads(project(reference), attn.heads) for project in (attn.to_q, attn.to_k))
            queries = spatial_guided_attention(reference_q, reference_k, q)
        out = F.scaled_dot_product_attention(queries, keys, values)
        if guidance.temporal and (paths := guidance.paths.get(hidden_states.shape[1])):
            out = temporal_guided_attention(paths, q, k, out, guidance.frames)
        return attn.to_out[1](attn.to_out[0](merge_heads(out)))

    def _efficient_cross_frame_tokens(self, tensor: torch.Tensor) -> torch.Tensor:
        """The T tokens of all frames that show something new, repeated for each frame of their half: [2 N, heads, T, d]."""
        frames, mask = self.guidance.frames, self.guidance.masks.get(tensor.shape[2])
        halves = tensor.unflatten(0, (2, frames)).transpose(2, 3)  # [2, N, P, heads, d]
        kept = halves[:, 0] if mask is None else halves[:, mask]  # [2, T, heads, d]
        return kept.transpose(1, 2)[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)


def split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, P, heads * d] to [B, heads, P, d]."""
    return tensor.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(tensor: torch.Tensor) -> torch.Tensor:
    """[B, heads, P, d] to [B, P, heads * d]."""
    return tensor.transpose(1, 2).flatten(2)


def spatial_guided_attention(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Average values over the places where the input frame is similar to itself; all [B, heads, P, d].

    `queries` and `keys` are those of the input frame, `values` the queries of the frame that is denoised.
    """
    return F.scaled_dot_product_attention(queries, KEY_SCALE * keys, values)


def temporal_guided_attention(
    paths: Trajectories, q: torch.Tensor, k: torch.Tensor, values: torch.Tensor, frames: int
) -> torch.Tensor:
    """Attention among the tokens of each trajectory; `q`, `k` and `values` are [2 N, heads, P, d], as is the result."""
    on_paths = (gather_tokens(tensor.unflatten(0, (2, frames)), paths.forward) for tensor in (q, k, values))
    queries, keys, values = (tensor.permute(0, 3, 2, 1, 4).flatten(0, 1) for tensor in on_paths)  # [2 P, heads, N, d]
    connected = paths.connected[:, None].repeat(2, 1, 1, 1)  # [2 P, 1, N, N]
    out = F.scaled_dot_product_attention(queries, KEY_SCALE * keys, values, attn_mask=connected)
    out = out.unflatten(0, (2, -1)).permute(0, 3, 2, 1, 4)  # [2, N, heads, P, d]
    return gather_tokens(out, paths.backward).flatten(0, 1)


def gather_tokens(tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Reorder the tokens of [2, N, heads, P, d] by `index` int64 [N, P], one order for each frame."""
    return tensor.gather(3, index[None, :, None, :, None].expand(*tensor.shape[:2], tensor.shape[2], -1, tensor.shape[4]))
