"""Distances between two sets of clips in the features of a network, with intervals.

Both compare distributions, not pairs: two sets of clips of the same kind are near, whatever each clip shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES, LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Distance:
    """A distance with its interval, in which it lies in 95 % of sets of this size, by the percentile bootstrap."""

    value: float
    low: float
    high: float


def frechet(one: np.ndarray, two: np.ndarray) -> float:
    """Frechet distance of the normal distributions with the mean and the covariance of features float64 [N, D], [M, D].

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), as FID (Heusel et al. 2017, arXiv:1706.08500). It is biased upwards by
    about 1/N: compare sets of equal size alone.
    """
    difference = one.mean(0) - two.mean(0)
    first, second = (np.atleast_2d(np.cov(rows, rowvar=False)) for rows in (one, two))
    # the eigenvalues of C1 C2 are those of the symmetric matrix C1^(1/2) C2 C1^(1/2)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(difference @ difference + np.trace(first) + np.trace(second) - 2 * shared)


def kernel(one: np.ndarray, two: np.ndarray) -> float:
    """Squared maximum mean discrepancy of features float64 [N, D], [M, D] with the kernel (x y / D + 1)^3, unbiased.

    This is KID (Binkowski et al. 2018, arXiv:1801.01401) over all pairs. It may be negative for equal distributions.
    """
    count, other = len(one), len(two)
    within = [
        (gram(rows, rows).sum() - np.trace(gram(rows, rows))) / (n * (n - 1)) for rows, n in ((one, count), (two, other))
    ]
    return float(sum(within) - 2 * gram(one, two).mean())


def gram(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return (one @ two.T / one.shape[1] + 1) ** 3


def distance(
    measure: Callable[[np.ndarray, np.ndarray], float], one: np.ndarray, two: np.ndarray, seed: int = 0
) -> Distance:
    """A distance of two sets with its bootstrap interval.

    A set drawn with repetitions has a higher distance than the set itself; the interval is moved down by the mean of that.
    """
    rng, value = np.random.default_rng(seed), measure(one, two)
    drawn = np.array([measure(resample(one, rng), resample(two, rng)) for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn - (drawn.mean() - value), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Distance(value, float(low), float(high))


def resample(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rows[rng.integers(0, len(rows), len(rows))]


def too_few(one: np.ndarray, two: np.ndarray) -> str:
    """A warning about sets that are too small for a Frechet distance; "" if they are large enough."""
    smallest, size = min(len(one), len(two)), one.shape[1]
    if smallest > size:
        return ""
    return f"{smallest} clips are fewer than the {size} features: the Frechet distance says little, the kernel distance more"
