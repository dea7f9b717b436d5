"""The blend of two sides against definitions and exact solutions."""

import cv2
import numpy as np
import pytest

from stages.media.propagate import blend
from stages.media.propagate.blend import GRADIENT_WEIGHTS, Blend, screened_poisson
from stages.media.propagate.engines import Propagated
from tests.media.propagate.scenes import panning, restyle, texture


def differences(height, width):
    """Forward differences as dense matrices: rows, columns."""

    def along(side):
        return np.eye(side, k=1)[:-1] - np.eye(side)[:-1]

    return np.kron(along(height), np.eye(width)), np.kron(np.eye(height), along(width))


def test_screened_poisson_solves_the_normal_equations():
    height, width = 8, 10
    rng = np.random.default_rng(0)
    image, down, right = (rng.normal(0, 40, (height, width, 3)) for _ in range(3))
    down[-1], right[:, -1] = 0, 0
    rows, columns = differences(height, width)
    solved = screened_poisson(image, down, right)
    for channel, g in enumerate(GRADIENT_WEIGHTS):
        matrix = np.eye(height * width) + g**2 * (rows.T @ rows + columns.T @ columns)
        target = rows.T @ down[:-1, :, channel].ravel() + columns.T @ right[:, :-1, channel].ravel()
        exact = np.linalg.solve(matrix, image[..., channel].ravel() + g**2 * target)
        assert np.abs(solved[..., channel].ravel() - exact).max() < 1e-9


@pytest.mark.parametrize("shape", [(8, 10), (7, 10), (8, 9), (5, 7), (1, 1)])
def test_screened_poisson_keeps_an_image_with_its_own_gradients(shape):
    image = np.random.default_rng(0).uniform(0, 60, (*shape, 3))
    assert np.allclose(screened_poisson(image, *blend.gradients(image)), image, atol=1e-9)


def test_gradients_are_differences_to_the_next_pixel_limited_to_100():
    values = np.zeros((2, 3, 1))
    values[0, :, 0] = (0, 50, 255)
    down, right = blend.gradients(values)
    assert down[..., 0].tolist() == [[0, -50, -100], [0, 0, 0]]
    assert right[..., 0].tolist() == [[50, 100, 0], [0, 0, 0]]


def test_mix_has_the_mean_and_contrast_of_the_reference():
    first, second, reference = (texture(40, 30, seed).astype(np.float32) for seed in (0, 1, 2))
    mixed = blend.mix(first, second, 0.4, reference)
    assert np.allclose(mixed.mean(axis=(0, 1)), reference.mean(axis=(0, 1)), atol=1e-2)
    assert np.allclose(mixed.std(axis=(0, 1)), reference.std(axis=(0, 1)), atol=1e-2)
    plain = 0.6 * (first - first.mean(axis=(0, 1))) / first.std(axis=(0, 1))
    plain += 0.4 * (second - second.mean(axis=(0, 1))) / second.std(axis=(0, 1))
    for channel in range(3):
        assert np.corrcoef(mixed[..., channel].ravel(), plain[..., channel].ravel())[0, 1] > 0.9999


def test_mix_of_sides_without_contrast_is_finite():
    grey = np.full((8, 8, 3), 90, np.float32)
    assert np.array_equal(blend.mix(grey, grey, 0.5, grey), grey)


def test_conversion_to_lab_and_back_keeps_the_image():
    rgb = texture(64, 48)
    lab = blend.to_lab(rgb)
    assert np.abs(lab - cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab) + (0, 128, 128)).max() < 2  # OpenCV's own 8-bit form
    assert np.abs(blend.to_rgb(lab).astype(int) - rgb).max() <= 1


def side(image, error):
    return Propagated(image, np.full(image.shape[:2], error, np.float32))


@pytest.mark.parametrize("poisson", [False, True])
def test_blend_keeps_sides_that_agree(poisson):
    frame = panning(1)[0]
    blended_image = Blend(frame, poisson).blend(frame, side(restyle(frame), 1.0), side(restyle(frame), 1.0), 0.5)
    assert np.abs(blended_image.astype(int) - restyle(frame)).max() <= 2


def test_blend_keeps_a_point_with_the_later_key_as_it_moves():
    key, one, two = panning(3, step=(8.0, 0.0))
    errors = np.zeros(key.shape[:2], np.float32)
    errors[:, 48:64] = 9
    blended = Blend(key, poisson=False)
    first, second = texture(96, 64, 7), texture(96, 64, 8)
    blended.blend(one, Propagated(first, errors), side(second, 1.0), 0.25)
    assert blended.from_after[:, 50:62].all() and not blended.from_after[:, :46].any()
    blended.blend(two, side(first, 0.0), side(second, 1.0), 0.5)
    assert blended.from_after[8:-8, 43:53].all() and not blended.from_after[8:-8, 58:].any()  # 8 pixels to the left


def test_blend_weighs_the_nearer_key_more():
    frame = panning(1)[0]
    first, second = restyle(frame), frame
    for share, taken in ((0.1, first), (0.9, second)):
        blended = Blend(frame, poisson=False)
        blended_image = blended.blend(frame, side(first, 5.0), side(second, 5.0), share).astype(int)
        other = second if taken is first else first
        assert np.abs(blended_image - taken).mean() < 0.5 * np.abs(blended_image - other).mean()
