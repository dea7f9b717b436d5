"""What the frames so far left behind: keys and values of every layer, bounded by a window with sinks (arXiv:2309.17453).

Frames are latent frames, counted from the start of the film; each is n tokens. The first `sink` frames are kept for good,
of the later ones the last `window - sink`, those that are being denoised among them.
"""

from __future__ import annotations

import torch

NOWHERE = -1  # the slot of a frame that a pass looks at and that is not kept


class Cache:
    """The memory of one sample: buffers of [B, window * n, heads, dim] per layer, written in place.

    Attention does not ask for order, so every frame has a slot of its own until a later one takes it, and nothing is moved.
    A block is written on each of its passes, the noisy ones too; what its last, clean one writes stays.
    """

    def __init__(self, window: int, sink: int):
        self.window, self.sink = window, sink
        self.frames: list[int] = []  # by slot
        self.start = 0  # of the pass that is under way: its first frame, and the slots of its frames
        self.slots: list[int] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.cross: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # keys and values of the prompt

    def slot(self, frame: int) -> int:
        return frame if frame < self.window else self.sink + (frame - self.sink) % (self.window - self.sink)

    def enter(self, start: int, slots: list[int]) -> None:
        """Begin a pass over the frames from `start` on, which are to be written to these slots."""
        self.start, self.slots = start, slots
        for frame, slot in enumerate(slots, start):
            if slot == len(self.frames):
                self.frames.append(frame)
            elif slot != NOWHERE:
                self.frames[slot] = frame

    def block(self, start: int, count: int) -> list[int]:
        """Slots of the next `count` frames, or of the last ones once more."""
        return [self.slot(frame) for frame in range(start, start + count)]

    def again(self, start: int, count: int, keep_sinks: bool) -> list[int]:
        """Slots for going over all that is in the window once more: the sinks stay, or are the first of these frames."""
        slots = self.block(start, count)
        if start > 0:  # the true first frames have left the window
            slots[: self.sink] = [NOWHERE] * self.sink if keep_sinks else list(range(self.sink))
        return slots

    def update(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's keys and values of this pass, [B, F * n, heads, dim]; all that are kept: [B, kept * n, ...]."""
        n = keys.shape[1] // len(self.slots)
        if layer not in self._layers:
            shape = (keys.shape[0], self.window * n, *keys.shape[2:])
            self._layers[layer] = keys.new_empty(shape), values.new_empty(shape)
        for buffer, new in zip(self._layers[layer], (keys, values), strict=True):
            for index, slot in enumerate(self.slots):
                if slot != NOWHERE:
                    buffer[:, slot * n : (slot + 1) * n] = new[:, index * n : (index + 1) * n]
        kept = len(self.frames) * n
        return tuple(buffer[:, :kept] for buffer in self._layers[layer])

    def forget_prompt(self) -> None:
        """To be called when another prompt comes."""
        self.cross.clear()
