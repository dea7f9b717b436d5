"""A KV cache over a sliding window with attention sinks (arXiv:2309.17453).

Frames are latent frames, counted from the start of the film; each is n tokens. The cache keeps the first `sink` frames for
ever, and the latest `window - sink` frames, which include the frames being denoised.
"""

from __future__ import annotations

import torch

NO_SLOT = -1  # the slot of a frame whose keys and values are not cached


class Cache:
    """The cached keys and values of one sample: buffers [B, window * n, heads, dim] per layer, written in place.

    Attention does not depend on the order of its keys. So each frame keeps its slot until a later frame overwrites it, and
    nothing is moved. Every pass over a block writes it; the last, clean pass determines what stays.
    """

    def __init__(self, window: int, sink: int):
        self.window, self.sink = window, sink
        self.frames: list[int] = []  # the frame in each slot
        self.start = 0  # first frame of the current pass
        self.slots: list[int] = []  # slots of the frames of the current pass
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.cross_kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values of the prompt, by layer

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

    def update(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's keys and values of the current pass, [B, F * n, heads, dim].

        Returns all cached ones, [B, cached frames * n, heads, dim].
        """
        n = keys.shape[1] // len(self.slots)
        if layer not in self._layers:
            shape = (keys.shape[0], self.window * n, *keys.shape[2:])
            self._layers[layer] = keys.new_empty(shape), values.new_empty(shape)
        for buffer, new in zip(self._layers[layer], (keys, values), strict=True):
            for index, slot in enumerate(self.slots):
                if slot != NO_SLOT:
                    buffer[:, slot * n : (slot + 1) * n] = new[:, index * n : (index + 1) * n]
        cached = len(self.frames) * n
        all_keys, all_values = self._layers[layer]
        return all_keys[:, :cached], all_values[:, :cached]

    def clear_cross_attention(self) -> None:
        """Drop the keys and values of the prompt. To be called when the prompt changes."""
        self.cross_kv.clear()
