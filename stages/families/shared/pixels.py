"""Converts pixels between uint8 and the range -1..1 of networks."""

import numpy as np
import torch


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float32 in -1..1."""
    return pixels.float() / 127.5 - 1


def to_uint8(clip: torch.Tensor) -> np.ndarray:
    """Convert a clip or frame [3, ..., H, W] in -1..1 to uint8 [..., H, W, 3]. Values outside are clamped.

    The device interleaves the channels: its memory is faster.
    """
    pixels = ((clip / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
    return pixels.contiguous().cpu().numpy()
