"""A KV cache over a sliding window with attention sinks (arXiv:2309.17453).

Frames are latent frames, counted from the start of the film; each is n tokens. The cache keeps the first `sink` frames for
ever, and the latest `window - sink` frames, which include the frames being denoised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

NO_SLOT = -1  # the slot of a frame whose keys and values are not cached


@dataclass
class LayerCache:
    """What a layer keeps: keys and values [B, window * n, heads, dim], written in place, and those of the prompt, once made.

    The code that uses it is the same for all layers, so that it is compiled once.
    """

    keys: torch.Tensor
    values: torch.Tensor
    prompt: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the latest keys and values of a pass, [B, F * n, heads, dim], to `places`, int64, of as many of its tokens.

        Returns all cached ones, [B, length, heads, dim].
        """
        for buffer, new in ((self.keys, keys), (self.values, values)):
            buffer.index_copy_(1, places, new[:, new.shape[1] - places.shape[0] :])
        return self.keys[:, :length], self.values[:, :length]


class Cache:
    """The cached keys and values of one sample, by layer.

    Attention does not depend on the order of its keys. So each frame keeps its slot until a later frame overwrites it, and
    nothing is moved. Every pass over a block writes it; the last, clean pass determines what stays.
    """

    def __init__(self, window: int, sink: int):
        self.window, self.sink = window, sink
        self.frames: list[int] = []  # the frame in each slot
        self.start = 0  # first frame of the current pass
        self.slots: list[int] = []  # slots of the frames of the current pass; those without one come first
        self.layers: list[LayerCache] = []

    def allocate(self, layers: int, batch: int, n: int, heads: int, dim: int, like: torch.Tensor) -> None:
        """Make the buffers of the layers, for n tokens per frame, with the device and the precision of a tensor."""
        shape = (batch, self.window * n, heads, dim)
        self.layers = [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in range(layers)]

    def slot(self, frame: int) -> int:
        """The slot of a frame: sinks have the first ones, later frames take turns in the others."""
        return frame if frame < self.window else self.sink + (frame - self.sink) % (self.window - self.sink)

    def begin_pass(self, start: int, slots: list[int]) -> None:
        """Begin a pass over the frames from `start` on; `update` writes them to these slots."""
        self.start, self.slots = start, slots
        for frame, slot in enumerate(slots, start):
            if slot == len(self.frames):
                self.frames.append(frame)
            elif slot != NO_SLOT:
                self.frames[slot] = frame

    def block_slots(self, start: int, count: int) -> list[int]:
        """Slots of the `count` frames from `start` on: the next frames, or the latest ones a second time."""
        return [self.slot(frame) for frame in range(start, start + count)]

    def recache_slots(self, start: int, count: int, keep_sinks: bool) -> list[int]:
        """Slots to recompute the whole window. The sinks stay, or the first of these frames replace them."""
        slots = self.block_slots(start, count)
        if start > 0:  # the frames in the sinks are older than the window
            slots[: self.sink] = [NO_SLOT] * self.sink if keep_sinks else list(range(self.sink))
        return slots

    def places(self, n: int) -> torch.Tensor:
        """Places of the tokens of the current pass in the buffers, int64, for n tokens per frame."""
        slots = torch.tensor([slot for slot in self.slots if slot != NO_SLOT])
        return (slots[:, None] * n + torch.arange(n)).flatten()

    def clear_cross_attention(self) -> None:
        """Drop the keys and values of the prompt. To be called when the prompt changes."""
        for layer in self.layers:
            layer.prompt = None
