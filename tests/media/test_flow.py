"""Correspondences, against motions known by formula."""

import cv2
import numpy as np
import pytest

from stages.media import flow
from tests.media.propagate.scenes import layered, panning

INNER = (slice(12, -12), slice(12, -12))


def shift(x, y, shape=(64, 96)):
    return flow.grid(shape) + np.float32([x, y])


def test_a_known_translation_is_found_to_a_tenth_of_a_pixel():
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
def test_pictures_too_small_for_flow_stay_where_they_are(shape):
    picture = np.zeros((*shape, 3), np.uint8)
    assert np.array_equal(flow.correspondence(picture, picture), flow.grid(shape))


def test_a_map_sampled_by_a_map_is_their_composition():
    here = flow.grid((64, 96))
    twice = flow.sample(here * np.float32([0.5, 0.25]), shift(4, 8))
    inside = (slice(0, -8), slice(0, -4))
    assert np.allclose(twice[inside], ((here + np.float32([4, 8])) * np.float32([0.5, 0.25]))[inside], atol=1e-3)


def test_what_does_not_lead_home_or_leaves_the_picture_is_not_consistent():
    there, back = shift(3, 0), shift(-3, 0)
    back[10:20, 40:50] += 2  # beyond 0.5 pixels and 1 % of the way
    back[30:40, 40:50] += 0.3
    expected = np.ones((64, 96), bool)
    expected[:, -3:] = False
    expected[10:20, 37:47] = False
    assert np.array_equal(flow.consistent(there, back), expected)


def test_along_a_chain_frames_are_found_in_the_key():
    key, *frames = panning(6, step=(1.5, 0.5))
    for number, match in enumerate(flow.matches(key, frames, residual=20), 1):
        moved = match.places - flow.grid(key.shape)
        assert np.abs(moved[INNER] - (1.5 * number, 0.5 * number)).mean() < 0.25
        assert match.trusted[INNER].mean() > 0.98


def test_what_comes_into_sight_is_not_trusted():
    key, *frames = layered(4)
    *_, match = flow.matches(key, frames, residual=20)
    here = flow.grid(key.shape)
    was, is_now = (np.linalg.norm(here - (x, 48), axis=-1) for x in (50, 65))
    uncovered = (was < 22) & (is_now > 26)
    assert match.trusted[uncovered].mean() < 0.1
    assert match.trusted[INNER][((was > 40) & (is_now > 40))[INNER]].mean() > 0.98


def test_a_colour_that_differs_more_than_the_residual_is_not_trusted():
    key = panning(1)[0]
    frame = key.copy()
    frame[20:40, 30:50] = np.clip(key[20:40, 30:50].astype(int) + 30, 0, 255)
    (strict,), (lax,) = (flow.matches(key, [frame], residual) for residual in (5, 255))
    assert not strict.trusted[25:35, 35:45].any() and lax.trusted[25:35, 35:45].mean() > 0.8
