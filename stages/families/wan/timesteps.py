"""The timestep of each token, of which the 5b has two values: 0 for the known tokens of a first frame, t for the others.

diffusers embeds the timestep of every token, and every block adds its table of modulation to each of them: in float32 that
is [1, tokens, 6, D], 2 GB for 121 frames of 1280*704. Here a transformer computes with a row per value, and a token takes
its row where it is modulated.
"""

from types import MethodType
from typing import Any, NamedTuple

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

# The matrix kernels of CPUs round by the number of rows, up to this one: with as many rows as there are tokens, or this
# many, a row has the bits of a token in diffusers.
ENOUGH = 64


class TokenRows(NamedTuple):
    """A tensor [B, S, ...] with few different rows. Token s of clip b has the row `row_of[b, s]`.

    It passes through the forward of diffusers' transformer as the tensor does, and through the hooks of its blocks.
    """

    rows: torch.Tensor  # [R, ...]
    row_of: torch.Tensor  # int64 [B, S]

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> "TokenRows":
        """As of the tensor; `dim` is one of a row's own."""
        return TokenRows(self.rows.unflatten(dim - 1, sizes), self.row_of)


def embed_each_timestep_once(transformer: WanTransformer3DModel) -> None:
    """Let a transformer compute with a row for each different timestep of its tokens. To be called before it gets hooks.

    Its predictions are those of diffusers; on a GPU they may differ in the last digits, by another kernel for few rows.
    """
    embedder = transformer.condition_embedder
    embedder.forward = MethodType(embed_timesteps, embedder)
    for block in transformer.blocks:
        block.forward = MethodType(modulate_by_rows, block)


def embed_timesteps(
    self: Any, timestep: torch.Tensor, text: torch.Tensor, image: None = None, timestep_seq_len: int = 1
) -> tuple[torch.Tensor, TokenRows, torch.Tensor, None]:
    """The forward of `WanTimeTextImageEmbedding` for a timestep per token, [B * S] with S = `timestep_seq_len`.

    Returns the embeddings of the timesteps [B, S, D], their projections [B, S, 6 * D], and the embedded text.
    """
    values, row_of = timestep.view(-1, timestep_seq_len).unique(return_inverse=True)
    count = len(values)
    further = values[-1:].expand(max(0, min(row_of.numel(), ENOUGH) - count))
    rows, projections, text, _ = type(self).forward(self, torch.cat([values, further]), text)
    return rows[:count][row_of], TokenRows(projections[:count], row_of), text, None


def modulate_by_rows(
    self: WanTransformerBlock, x: torch.Tensor, text: torch.Tensor, temb: TokenRows, rotary_emb: Any
) -> torch.Tensor:
    """The forward of `WanTransformerBlock` for tokens x [B, S, D] whose modulations `temb` are rows [R, 6, D]."""
    modulations = self.scale_shift_table + temb.rows.float()  # [R, 6, D]
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulations.unbind(1)
    attended = self.attn1(modulated(self.norm1(x.float()), shift, scale, temb.row_of).type_as(x), None, None, rotary_emb)
    x = (x.float() + attended * gate[temb.row_of]).type_as(x)
    x = x + self.attn2(self.norm2(x.float()).type_as(x), text, None, None)
    fed = self.ffn(modulated(self.norm3(x.float()), ffn_shift, ffn_scale, temb.row_of).type_as(x))
    return (x.float() + fed.float() * ffn_gate[temb.row_of]).type_as(x)


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, row_of: torch.Tensor) -> torch.Tensor:
    """x [B, S, D], scaled and shifted by the rows [R, D] of its tokens."""
    return x * (1 + scale)[row_of] + shift[row_of]
