"""Conversion of pixels, against its formula."""

import numpy as np
import torch

from stages.families.shared.pixels import to_float, to_uint8


def test_to_uint8_rounds_and_clamps_and_interleaves_the_channels():
    clip = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    pixels = to_uint8(clip)
    expected = np.rint(np.clip(clip.numpy().transpose(1, 2, 3, 0).astype(np.float32) / 2 + np.float32(0.5), 0, 1) * 255)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, expected.astype(np.uint8))
    assert pixels.flags["C_CONTIGUOUS"] and to_uint8(clip[:, 0]).flags["C_CONTIGUOUS"]  # no later step copies it


def test_every_level_survives_the_way_to_floats_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    assert np.array_equal(to_uint8(to_float(levels)), levels.movedim(0, -1).numpy())
