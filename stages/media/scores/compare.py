"""Compare the figures of runs, film by film: means, paired differences with bootstrap intervals, wins and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from stages.media.scores.figures import FIGURES, LOWER

CONFIDENCE = 0.95
RESAMPLES = 10_000
BATCH = 2**22  # numbers that are drawn at once, so that memory does not depend on the number of films
SEED = 0
EQUAL = 1e-9  # relative difference of figures that are a tie


@dataclass(frozen=True)
class Comparison:
    """A figure of the films that both runs have it of.

    Attributes:
        films: their number.
        first, second: its mean in either run.
        difference: mean of second minus first, film by film.
        low, high: the 95 % bootstrap interval of that mean; None for fewer than two films.
        better: "higher", "lower", or "" where neither is better in general.
        wins, ties, losses: films in which the second run is better, equal and worse; where neither is better, higher and
            lower.
    """

    figure: str
    films: int
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    better: str
    wins: int
    ties: int
    losses: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out a difference of 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def compare(name: str, first: Sequence[float], second: Sequence[float]) -> Comparison:
    """Compare a figure of the same films in two runs, at least one film."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    differences = b - a
    better = FIGURES[name].better if name in FIGURES else ""
    tied = np.abs(differences) <= EQUAL * np.maximum(np.abs(a), np.abs(b))
    higher, lower = int(((differences > 0) & ~tied).sum()), int(((differences < 0) & ~tied).sum())
    wins, losses = (lower, higher) if better == LOWER else (higher, lower)
    low, high = interval(differences) if len(differences) > 1 else (None, None)
    means = float(a.mean()), float(b.mean()), float(differences.mean())
    return Comparison(name, len(a), *means, low, high, better, wins, int(tied.sum()), losses)


def compare_all(
    first: Mapping[str, Mapping[str, float | None]], second: Mapping[str, Mapping[str, float | None]]
) -> list[Comparison]:
    """The comparisons of all figures of two runs, which are by film. Only films of both count."""
    films = [film for film in first if film in second]
    names = dict.fromkeys(name for film in films for name in (*first[film], *second[film]))
    order = {name: place for place, name in enumerate(FIGURES)}
    found = []
    for name in sorted(names, key=lambda name: order.get(name, len(order))):
        pairs = [(first[film].get(name), second[film].get(name)) for film in films]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if both:
            found.append(compare(name, *zip(*both)))
    return found


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of differences, float64 [N], N > 1: bootstrap percentiles, expanded for small N.

    A resample of N values spreads by sqrt((N - 1) / N) too little, and percentiles take the normal distribution for
    Student's. T. Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69 (2015), widens
    the percentiles by both. The seed is fixed: the same figures give the same interval.
    """
    count = len(differences)
    tail = NormalDist().cdf(-sqrt(count / (count - 1)) * student((1 + CONFIDENCE) / 2, count - 1))
    generator = np.random.default_rng(SEED)
    rows = max(1, BATCH // count)
    means = [
        differences[generator.integers(0, count, (min(rows, RESAMPLES - start), count))].mean(axis=1)
        for start in range(0, RESAMPLES, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def student(share: float, freedom: int) -> float:
    """Quantile of Student's t distribution, computed from the normal quantile (Abramowitz and Stegun, 26.7.5).

    For few degrees of freedom, where the series fails, it is an upper bound of what a bootstrap can show: the whole range.
    """
    if freedom < 3:
        return 10.0
    z = NormalDist().inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
