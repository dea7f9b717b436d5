"""What the transformer of Helios reads beside a chunk: a prefix, and the latents before it, the older the coarser.

The tokens of a pass lie in the order long, mid, prefix, short, chunk. Their positions in time count from the prefix, which
is 0, and are the same for every chunk: so a film has no longest length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Past(NamedTuple):
    """What lies before a chunk.

    Attributes:
        prefix: the first latent of the film, [B, C, 1, h, w]; zero for the first chunk of a film without a source.
        history: the latest latents, old ones first, [B, C, N, h, w]; zero where there are fewer than N.
    """

    prefix: torch.Tensor
    history: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Past:
        return Past(self.prefix.to(device, dtype), self.history.to(device, dtype))

    def after(self, chunk: torch.Tensor) -> Past:
        """The past of the next chunk. A film without a source takes its own first latent as the prefix."""
        prefix = self.prefix if self.prefix.any() else chunk[:, :, :1]
        return Past(prefix, latest([self.history, chunk], self.history.shape[2]))


def latest(parts: Sequence[torch.Tensor], count: int) -> torch.Tensor:
    """The last `count` latents of parts [B, C, T, h, w] that follow one another, with zeros in front of fewer."""
    joined = torch.cat([*parts], dim=2)
    missing = max(0, count - joined.shape[2])
    return torch.nn.functional.pad(joined, (0, 0, 0, 0, missing, 0))[:, :, -count:]


def predict(
    transformer: torch.nn.Module,
    hidden: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    past: Past,
    sizes: Sequence[int],
) -> torch.Tensor:
    """The prediction for a noisy chunk, [B, C, F, h, w], in the precision of the transformer.

    Args:
        hidden: the noisy chunk [B, C, F, h, w]; its sides may be smaller than those of the past.
        timestep: of each chunk, [B], 0 to 1000.
        text: embeddings of the prompt [B, L, D].
        sizes: how many latents of the history are read coarsely in 4 x 8 x 8, in 2 x 4 x 4, and as they are: oldest first.
    """
    count = hidden.shape[2]
    prefix, *places = torch.arange(1 + sum(sizes) + count).split([1, *sizes, count])
    long, mid, short = past.history.split([*sizes], dim=2)
    names = ("history_long", "history_mid", "history_short")
    latents = (long, mid, torch.cat([past.prefix, short], dim=2))
    indices = (places[0], places[1], torch.cat([prefix, places[2]]))
    given: dict[str, Any] = {f"latents_{name}": one for name, one in zip(names, latents, strict=True)}
    given |= {f"indices_latents_{name}": one[None] for name, one in zip(names, indices, strict=True)}
    return transformer(
        hidden_states=hidden,
        timestep=timestep,
        encoder_hidden_states=text,
        indices_hidden_states=places[3][None],
        return_dict=False,
        **given,
    )[0]
