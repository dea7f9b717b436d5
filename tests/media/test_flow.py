"""Correspondences against motions that are known by formula."""

import cv2
import numpy as np
import pytest

from stages.media import flow
from tests.media.propagate.scenes import layered_scene, panning

INNER = (slice(12, -12), slice(12, -12))


def shift(x, y, shape=(64, 96)):
    return flow.grid(shape) + np.float32([x, y])


def test_flow_finds_a_known_translation_to_a_tenth_of_a_pixel():
    first, second = panning(2, step=(2.25, -1.5))
    moved = flow.correspondence(first, second) - flow.grid(first.shape)
    assert np.abs(moved[INNER] - (-2.25, 1.5)).mean() < 0.1


def test_the_flow_does_not_depend_on_the_number_of_threads():
    first, second = panning(2, size=(320, 240))
    threads = cv2.getNumThreads()
    maps = []
    for count in (1, 2):
        cv2.setNumThreads(count)
        maps.append(flow.correspondence(first, second))
    cv2.setNumThreads(threads)
    assert np.array_equal(*maps)


@pytest.mark.parametrize("shape", [(1, 1), (8, 200), (15, 15)])
def test_flow_of_tiny_images_is_zero(shape):
    image = np.zeros((*shape, 3), np.uint8)
    assert np.array_equal(flow.correspondence(image, image), flow.grid(shape))


def test_sampling_a_map_by_a_map_composes_them():
    here = flow.grid((64, 96))
    composed = flow.sample(here * np.float32([0.5, 0.25]), shift(4, 8))
    inside = (slice(0, -8), slice(0, -4))
    assert np.allclose(composed[inside], ((here + np.float32([4, 8])) * np.float32([0.5, 0.25]))[inside], atol=1e-3)


def test_is_consistent_rejects_points_that_do_not_return_or_leave_the_image():
    forward, backward = shift(3, 0), shift(-3, 0)
    backward[10:20, 40:50] += 2  # beyond 0.5 pixels and 1 % of the distance
    backward[30:40, 40:50] += 0.3
    expected = np.ones((64, 96), bool)
    expected[:, -3:] = False
    expected[10:20, 37:47] = False
    assert np.array_equal(flow.is_consistent(forward, backward), expected)


def test_flow_along_a_chain_finds_frames_in_the_key():
    key, *frames = panning(6, step=(1.5, 0.5))
    for number, match in enumerate(flow.match_frames(key, frames, residual=20), 1):
        moved = match.places - flow.grid(key.shape)
        assert np.abs(moved[INNER] - (1.5 * number, 0.5 * number)).mean() < 0.25
        assert match.reliable[INNER].mean() > 0.98


def test_disoccluded_pixels_are_not_reliable():
    key, *frames = layered_scene(4)
    *_, match = flow.match_frames(key, frames, residual=20)
    here = flow.grid(key.shape)
    was, found_at = (np.linalg.norm(here - (x, 48), axis=-1) for x in (50, 65))
    uncovered = (was < 22) & (found_at > 26)
    assert match.reliable[uncovered].mean() < 0.1
    assert match.reliable[INNER][((was > 40) & (found_at > 40))[INNER]].mean() > 0.98


def test_pixels_whose_colour_differs_more_than_the_residual_are_not_reliable():
    key = panning(1)[0]
    frame = key.copy()
    frame[20:40, 30:50] = np.clip(key[20:40, 30:50].astype(int) + 30, 0, 255)
    (strict,), (lax,) = (flow.match_frames(key, [frame], residual) for residual in (5, 255))
    assert not strict.reliable[25:35, 35:45].any() and lax.reliable[25:35, 35:45].mean() > 0.8
