import colorsys

import numpy as np
import pytest

from stages.media.stats import ClipStatistics
from stages.runtime.errors import ItemError


def test_statistics_are_those_of_the_pixels():
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


def test_saturation_and_sharpness_tell_dull_and_blurred_from_vivid_and_sharp():
    def of(rgb):
        statistics = ClipStatistics()
        statistics.add(rgb.astype(np.uint8))
        return statistics.summary()["whole"]

    checks = np.indices((32, 32)).sum(axis=0) % 2 * 255
    assert of(np.full((32, 32, 3), 77))["sharpness"] == 0
    assert of(np.repeat(checks[..., None], 3, axis=2))["sharpness"] > 1e5
    red = np.array(colorsys.hsv_to_rgb(0, 1, 1)) * 255
    assert of(np.tile(red, (32, 32, 1)))["saturation"] == 255
    assert of(np.full((32, 32, 3), 77))["saturation"] == 0


def test_a_clip_without_frames_has_none():
    with pytest.raises(ItemError, match="without frames"):
        ClipStatistics().summary()
