"""Figures of values that come one by one, in constant memory."""

from __future__ import annotations

import numpy as np


class Mean:
    """The mean of values."""

    def __init__(self) -> None:
        self._count, self._sum = 0, 0.0

    def add(self, value: float) -> None:
        self._count, self._sum = self._count + 1, self._sum + value

    @property
    def value(self) -> float | None:
        """The mean; None without values."""
        return self._sum / self._count if self._count else None


class Walk:
    """Mean, slope and range of a value, a number or a vector, that is followed over `at` (seconds, or numbers of parts)."""

    def __init__(self) -> None:
        self._count = 0
        self.farthest: float | None = None  # largest distance of a value from the first

    def add(self, at: float, value: float | np.ndarray) -> None:
        value = np.atleast_1d(np.asarray(value, np.float64))
        if not self._count:
            self._at, self.first = 0.0, value
            self.mean, self._low, self._high = np.zeros_like(value), value, value
            self._spread, self._together, self.farthest = 0.0, np.zeros_like(value), 0.0
        # the update of means and co-moments by Welford, which loses no digits in long films
        self._count += 1
        apart = at - self._at
        self._at += apart / self._count
        self.mean = self.mean + (value - self.mean) / self._count
        self._spread += apart * (at - self._at)
        self._together = self._together + apart * (value - self.mean)
        self._low, self._high = np.minimum(self._low, value), np.maximum(self._high, value)
        self.farthest = max(self.farthest or 0.0, float(np.linalg.norm(value - self.first)))

    @property
    def slope(self) -> np.ndarray | None:
        """Change of the value per unit of `at`, by least squares; None with fewer than two places."""
        return self._together / self._spread if self._count > 1 and self._spread > 0 else None

    def figures(self, name: str) -> dict[str, float | None]:
        """Mean, slope and range of a number; None without values."""
        slope = self.slope
        return {
            f"{name}_mean": float(self.mean[0]) if self._count else None,
            f"{name}_slope": None if slope is None else float(slope[0]),
            f"{name}_range": float(self._high[0] - self._low[0]) if self._count else None,
        }
