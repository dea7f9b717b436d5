"""What changes from frame to frame where it should not."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np

from stages.media.flow import sample
from stages.media.scores.film import Figures, Film, Group
from stages.media.scores.frames import Look, Step
from stages.media.scores.series import Mean


class Flicker(Group):
    def __init__(self, film: Film):
        super().__init__(film)
        self._difference, self._warping, self._brightness = Mean(), Mean(), Mean()
        self._last: deque[float] = deque(maxlen=2)  # brightness of the frames before, without a cut between them

    def add(self, look: Look, step: Step | None) -> None:
        if step is None:
            self._last.append(look.luma)
            return
        self._difference.add(step.difference)
        if step.is_cut or step.is_plain:
            self._last.clear()
        elif (error := warping_error(step)) is not None:
            self._warping.add(error)
        if len(self._last) == 2:
            self._brightness.add(abs(look.luma - 2 * self._last[1] + self._last[0]) / 4)
        self._last.append(look.luma)

    def figures(self) -> Figures:
        difference = self._difference.value
        return {
            "temporal": None if difference is None else 1 - difference / 255,
            "warping_error": self._warping.value,
            "brightness": self._brightness.value,
        }


def warping_error(step: Step) -> float | None:
    """The difference of a frame and the next one moved back by the flow, in 0..1 per channel, where both show the same.

    E_pair of Lai et al., "Learning blind video temporal consistency", ECCV 2018. None where nothing is seen in both.
    """
    guide = step.guide
    visible = guide.is_visible
    if not visible.any():
        return None
    moved = sample(step.after.small.astype(np.float32), guide.places)
    apart = cv2.norm(moved, step.before.small.astype(np.float32), cv2.NORM_L2SQR, visible.astype(np.uint8))
    return apart / 255**2 / int(visible.sum())
