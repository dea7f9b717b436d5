"""Patch search and vote: each step against numpy."""

import cv2
import numpy as np
import pytest

from stages.media.flow import Match, grid
from stages.media.propagate import patches
from stages.media.propagate.patches import CHANNELS, Pair, Search, synthesise
from tests.media.propagate.scenes import layered_scene, panning, restyle, texture


def random_features(height, width, radius, seed):
    shape = (height + 2 * radius, width + 2 * radius, CHANNELS)
    return np.random.default_rng(seed).integers(-3000, 3000, shape).astype(np.int16)


def squares(a, row, column, b, other_row, other_column, size):
    """The squared difference of two patches, by definition."""
    one = a[row : row + size, column : column + size].astype(np.int64)
    return int(((one - b[other_row : other_row + size, other_column : other_column + size]) ** 2).sum())


def flat(features):
    return np.ascontiguousarray(features).reshape(len(features), -1)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_patch_distance_is_the_squared_difference(size):
    a, b = (random_features(9, 11, size // 2, seed) for seed in (0, 1))
    b //= 4  # as far apart as features can be, and still within 32 bits
    a //= 4
    for places in ((0, 0, 8, 10), (3, 4, 2, 7)):
        row, column, other_row, other_column = places
        distance = patches.distance(flat(a), row, column, flat(b), other_row, other_column, size, 2**31 - 1)
        assert distance == squares(a, row, column, b, other_row, other_column, size)


@pytest.mark.parametrize("size", [3, 5, 7])
def test_the_largest_patch_distance_fits_in_32_bits(size):
    black, white = np.zeros((size, size, 3), np.uint8), np.full((size, size, 3), 255, np.uint8)
    near, far = np.zeros((size, size, 2), np.float32), np.full((size, size, 2), size, np.float32)
    one, other = patches.features(black, black, near, 0), patches.features(white, white, far, 0)
    expected = size * size * sum(patches.WEIGHTS.values()) * patches.PRECISION * 255**2
    assert patches.distance(one, 0, 0, other, 0, 0, size, 2**31 - 1) == pytest.approx(expected, rel=1e-3)


def test_patch_search_finds_nearly_the_best_match():
    height, width, size = 12, 14, 3
    colours = texture(width, height), texture(width, height, seed=5)
    target, source = (
        patches.features(colour, colour, np.zeros((height, width, 2), np.float32), size // 2) for colour in colours
    )
    nearest = np.zeros((height, width, 2), np.int32)
    pixels = np.argwhere(np.ones((height, width), bool))
    a, b = (features.reshape(height + 2, width + 2, CHANNELS) for features in (target, source))
    everywhere = [(row, column) for row in range(height) for column in range(width)]
    best = np.array([min(squares(a, *here, b, *there, size) for there in everywhere) for here in everywhere])
    start = np.array([squares(a, *here, b, 0, 0, size) for here in everywhere])
    patches.improve(target, source, nearest, pixels, size, 14, 60, 1)
    distances = np.array([squares(a, *here, b, *nearest[here], size) for here in everywhere])
    assert (distances >= best).all() and (distances <= start).all()
    assert (distances == best).mean() > 0.9


def test_patch_vote_is_the_mean_of_all_proposals():
    rng = np.random.default_rng(0)
    height, width, radius = 7, 9, 2
    palette = rng.integers(0, 256, (height + 4, width + 4, 3), dtype=np.uint8)
    nearest = np.stack([rng.integers(0, height, (height, width)), rng.integers(0, width, (height, width))], axis=-1)
    result = np.zeros((height, width, 3), np.float32)
    patches.vote(palette, nearest.astype(np.int32), np.array([[0, 0], [3, 4]]), radius, result)
    for row, column in ((0, 0), (3, 4)):
        proposed = [
            palette[nearest[r, c, 0] + row - r + radius, nearest[r, c, 1] + column - c + radius]
            for r in range(height)
            for c in range(width)
            if abs(r - row) <= radius and abs(c - column) <= radius
        ]
        assert result[row, column] == pytest.approx(np.mean(proposed, axis=0), abs=1e-3)
    assert result[6, 8].sum() == 0  # not requested


@pytest.mark.parametrize("side", [1, 10, 11, 21, 22, 100, 480, 704])
def test_pyramid_levels_halve_an_image_while_two_patches_fit(side):
    levels = patches.level_count((side, 2000), 5)
    assert levels == 1 or side * 2.0 ** -(levels - 1) >= 11
    assert side * 2.0**-levels < 11


def test_holes_are_filled_from_their_surroundings():
    values = np.full((20, 30, 2), 7, np.float32)
    known = np.ones((20, 30), bool)
    known[5:15, 8:25] = False
    values[~known] = -1000
    assert np.allclose(patches.fill_holes(values, known), 7, atol=1e-4)
    values[:, 15:][known[:, 15:]] = 9
    filled = patches.fill_holes(values, known)
    assert np.array_equal(filled[known], values[known]) and filled.min() > 6.99 and filled.max() < 9.01


def test_matches_at_half_size_are_scaled_up():
    coarse = np.array([[[0, 1], [1, 0]]], np.int32)
    expected = [[[0, 2], [0, 3], [2, 0], [2, 1], [2, 0]], [[1, 2], [1, 3], [3, 0], [3, 1], [3, 0]]]
    assert patches.upscale_matches(coarse, (4, 5))[:2].tolist() == expected


def test_synthesise_restores_a_shifted_image():
    """For a shift by whole pixels every patch has an exact match, which a search without flow must find."""
    key, frame = (texture(120, 80)[:, :96], texture(120, 80)[:, 6:102])
    match = Match(frame, grid(key.shape), np.ones(key.shape[:2], bool))
    result = synthesise(Pair(key, restyle(key)), match, np.ones(key.shape[:2], bool), Pair(key, key), Search(iterations=4))
    inner = (slice(4, -4), slice(4, -12))
    for image, truth in ((result.frame, frame), (result.translated, restyle(frame))):
        exact = (image[inner] == truth[inner]).all(axis=-1).mean()
        assert exact > 0.95


def test_synthesise_changes_only_the_masked_pixels():
    key, frame = panning(2)
    where = np.zeros(key.shape[:2], bool)
    where[20:40, 30:60] = True
    start = np.full_like(key, 99)
    match = Match(frame, grid(key.shape), ~where)
    result = synthesise(Pair(key, restyle(key)), match, where, Pair(start, start), Search())
    for image in (result.frame, result.translated):
        assert (image[~where] == 99).all()
    assert not (result.translated[where] == 99).all(axis=-1).any()


def test_synthesise_does_not_depend_on_threads_or_chance():
    key, *_, frame = layered_scene(4)
    reliable = np.random.default_rng(0).random(key.shape[:2]) > 0.3
    match = Match(frame, grid(key.shape), reliable)
    threads, results = cv2.getNumThreads(), []
    for count in (1, 2, 2):
        cv2.setNumThreads(count)
        np.random.seed(count)
        results.append(synthesise(Pair(key, restyle(key)), match, ~reliable, Pair(key, key), Search()).translated)
    cv2.setNumThreads(threads)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[1], results[2])


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (16, 12)])
def test_synthesise_takes_images_smaller_than_a_patch(size):
    key = texture(64, 64)[: size[1], : size[0]]
    match = Match(key, grid(key.shape), np.zeros(key.shape[:2], bool))
    result = synthesise(Pair(key, restyle(key)), match, ~match.reliable, Pair(key, key), Search())
    assert result.translated.shape == key.shape
