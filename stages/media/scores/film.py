"""What is known of a film before its frames are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from stages.media.scores.frames import Look, Step

Figures = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Film:
    """A film: seconds at which each frame is shown, float64 [N], the parts, and the frames that were taken from its source.

    `parts` are (name, number of frames). `source` holds frames of the source for comparisons of looks; empty without one. A
    film that `is_aligned` shows its source frame by frame, in a look of its own. `cuts` are the numbers of the parts, from
    0, that do not go on from the one before.
    """

    times: np.ndarray
    parts: Sequence[tuple[str, int]]
    source: Sequence[Look] = ()
    is_aligned: bool = False
    cuts: frozenset[int] = frozenset()

    @property
    def starts(self) -> list[int]:
        """The index of the first frame of each part, in order; parts without frames are left out."""
        counts = [count for _, count in self.parts if count]
        return [0, *accumulate(counts)][: len(counts)]


class Group(ABC):
    """Scores that are measured together. `film` is known before; each frame is added with the step that leads to it."""

    def __init__(self, film: Film):
        self.film = film

    @abstractmethod
    def add(self, look: Look, step: Step | None) -> None:
        """Add the next frame. The first one has no step."""

    @abstractmethod
    def figures(self) -> Figures:
        """The figures by their names, without the name of the group. A figure that the film lacks is None."""

    def details(self) -> list[dict[str, Any]]:
        """A row per place that the figures summarise."""
        return []
