import colorsys

import cv2
import numpy as np
import pytest

from stages.media.stats import ClipStatistics
from stages.runtime.errors import ItemError


def test_clip_statistics_are_those_of_the_pixels():
    clip = np.random.default_rng(2).integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)
    clip[3:] //= 2
    statistics = ClipStatistics()
    for rgb in clip:
        statistics.add(rgb)
    summary = statistics.summary()
    assert summary["frames"] == 5
    for name, pixels in (("first", clip[0]), ("last", clip[-1]), ("whole", clip)):
        flat = pixels.reshape(-1, 3).astype(float)
        assert summary[name]["mean"] == pytest.approx(flat.mean(axis=0))
        assert summary[name]["std"] == pytest.approx(flat.std(axis=0))
        assert summary[name]["saturation"] == pytest.approx((flat.max(axis=1) - flat.min(axis=1)).mean())


def test_saturation_and_sharpness_separate_grey_and_blurred_clips_from_vivid_and_sharp_ones():
    def clip_statistics(rgb):
        statistics = ClipStatistics()
        statistics.add(rgb.astype(np.uint8))
        return statistics.summary()["whole"]

    checks = np.indices((32, 32)).sum(axis=0) % 2 * 255
    assert clip_statistics(np.full((32, 32, 3), 77))["sharpness"] == 0
    assert clip_statistics(np.repeat(checks[..., None], 3, axis=2))["sharpness"] > 1e5
    red = np.array(colorsys.hsv_to_rgb(0, 1, 1)) * 255
    assert clip_statistics(np.tile(red, (32, 32, 1)))["saturation"] == 255
    assert clip_statistics(np.full((32, 32, 3), 77))["saturation"] == 0


def test_a_clip_without_frames_has_no_statistics():
    with pytest.raises(ItemError, match="without frames"):
        ClipStatistics().summary()


@pytest.mark.parametrize("planar", [False, True])
def test_statistics_are_those_of_the_formulas_to_the_bit(planar):
    """Sums of integers are exact, whatever the layout of the pixels in memory."""
    rgb = np.random.default_rng(3).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    statistics = ClipStatistics()
    statistics.add(np.asfortranarray(rgb) if planar else rgb)
    first = statistics.summary()["first"]
    assert first["saturation"] == (rgb.max(axis=2) - rgb.min(axis=2)).mean(dtype=np.float64)
    assert first["mean"] == rgb.reshape(-1, 3).mean(axis=0, dtype=np.float64).tolist()
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    padded = np.pad(grey.astype(np.float32), 1, mode="reflect")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * padded[1:-1, 1:-1]
    assert first["sharpness"] == laplacian.var(dtype=np.float64)
