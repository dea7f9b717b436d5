"""Distances between sets of features against closed forms and plain computations."""

import numpy as np
import pytest
from scipy import linalg

from stages.media.scores.sets import distance, frechet, kernel, too_few


def with_moments(mean, covariance, count=64, seed=0):
    """Features whose sample mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).normal(size=(count, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    return rows @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_gaussians_with_diagonal_covariances_is_the_closed_form():
    means, variances = ([1.0, 2.0, 3.0], [0.0, 2.0, 5.0]), ([1.0, 4.0, 9.0], [4.0, 1.0, 2.25])
    one, two = (with_moments(np.array(m), np.diag(v), seed=n) for n, (m, v) in enumerate(zip(means, variances)))
    squared = sum((a - b) ** 2 for a, b in zip(*means))
    spread = sum((np.sqrt(a) - np.sqrt(b)) ** 2 for a, b in zip(*variances))
    assert frechet(one, two) == pytest.approx(squared + spread, abs=1e-6)
    assert frechet(one, one) == pytest.approx(0, abs=1e-6)


def test_frechet_of_dense_covariances_is_the_trace_of_the_matrix_root():
    """By the eigenvalues of the product itself, and by scipy's square root of a matrix."""
    rng = np.random.default_rng(1)
    roots = rng.normal(size=(2, 6, 6))
    first, second = (root @ root.T + 0.1 * np.eye(6) for root in roots)
    one, two = with_moments(np.zeros(6), first), with_moments(np.ones(6), second, seed=1)
    expected = 6 + np.trace(first) + np.trace(second) - 2 * np.sqrt(np.linalg.eigvals(first @ second)).sum().real
    assert frechet(one, two) == pytest.approx(expected, abs=1e-6)
    by_scipy = 6 + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert frechet(one, two) == pytest.approx(by_scipy, abs=1e-6)


def test_fewer_clips_than_features_have_a_distance_and_a_warning():
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(5, 40)), rng.normal(size=(6, 40)) + 1
    assert frechet(one, two) > 0
    assert "5 clips are fewer than the 40 features" in too_few(one, two)
    assert not too_few(rng.normal(size=(41, 40)), rng.normal(size=(50, 40)))


def test_the_kernel_distance_is_the_unbiased_estimate_over_all_pairs():
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)) + 0.5

    def value(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([value(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (one, two)]
    between = np.mean([value(a, b) for a in one for b in two])
    assert kernel(one, two) == pytest.approx(sum(within) - 2 * between, rel=1e-12)


@pytest.mark.parametrize("measure", [frechet, kernel])
def test_the_interval_holds_the_distance_and_tells_different_sets_apart(measure):
    rng = np.random.default_rng(4)
    one, two, other = (rng.normal(size=(80, 4)) + shift for shift in (0, 0, 2))
    near, far = distance(measure, one, two), distance(measure, one, other)
    assert near.low <= near.value <= near.high < far.low <= far.value <= far.high
    assert distance(measure, one, two) == near  # the same in each run
