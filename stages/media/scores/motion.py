"""How much moves, how smoothly, and which frames are repeated or missing."""

from __future__ import annotations

from collections import deque

import numpy as np

from stages.media.flow import lengths
from stages.media.scores.film import Figures, Film, Group
from stages.media.scores.frames import Look, Step
from stages.media.scores.health import FREEZE
from stages.media.scores.series import Mean

STILL = 0.0002  # of the diagonal: the flow that noise alone has
LONGEST = 0.05  # share of the flow vectors that VBench's dynamic degree looks at
REPEAT = 0.1  # change of a repeated frame, as a share of that of the steps before and after it
MOVING = 0.001  # of the diagonal: the flow that can be compared with another one, and not only with none
JUMP = 1.6  # motion where a frame is missing, as a multiple of the motion before and after
ALIKE = 0.35  # squared distance of two flows of one direction and length, as a share of their squared lengths


class Motion(Group):
    def __init__(self, film: Film):
        super().__init__(film)
        self._magnitude, self._dynamic = Mean(), Mean()
        self._steps = self._still = self._cuts = self._repeated = self._dropped = 0
        self._changes = self._lengths = 0.0  # of the flow from step to step, and of the flow, for its smoothness
        self._last: deque[Step] = deque(maxlen=3)  # without a cut between them
        self._moving: tuple[float, float] | None = None  # change and time of the last step that was no repeated one
        self._pending: list[float] = []  # the small changes since then

    def add(self, look: Look, step: Step | None) -> None:
        if step is None:
            return
        self._cuts += step.is_cut
        if step.is_cut or step.is_plain:
            self._last.clear()
            self._moving, self._pending = None, []
            return
        self._steps += 1
        self._still += step.magnitude < STILL
        self._magnitude.add(step.magnitude)
        self._dynamic.add(longest(step.lengths))
        self._last.append(step)
        if len(self._last) > 1:
            before = self._last[-2]
            self._changes += float(lengths(step.flow - before.flow).mean()) / step.diagonal
            self._lengths += step.magnitude + before.magnitude
        if len(self._last) == 3:
            self._dropped += jumps(*self._last)
        self._count_repeated(step)

    def _count_repeated(self, step: Step) -> None:
        """Count frames that stand still between two that move; a long stand is a freeze."""
        if step.is_same:
            if self._moving and step.after.time - self._moving[1] < FREEZE - 1e-6:
                self._pending.append(step.change)
            else:
                self._moving, self._pending = None, []
            return
        if self._moving:
            moving = min(self._moving[0], step.change)
            self._repeated += sum(change <= REPEAT * moving for change in self._pending)
        self._moving, self._pending = (step.change, step.after.time), []

    def figures(self) -> Figures:
        moves = (self._magnitude.value or 0) >= STILL and self._lengths > 0
        return {
            "magnitude": self._magnitude.value,
            "dynamic": self._dynamic.value,
            "smoothness": max(0.0, 1 - self._changes / self._lengths) if moves else None,
            "still_share": self._still / self._steps if self._steps else None,
            "repeated_frames": self._repeated,
            "dropped_frames": self._dropped,
            "cuts": self._cuts,
        }


def longest(lengths: np.ndarray) -> float:
    """Mean of the 5 % longest flow vectors."""
    flat = lengths.ravel()
    count = max(1, int(flat.size * LONGEST))
    return float(np.partition(flat, flat.size - count)[flat.size - count :].mean())


def jumps(before: Step, step: Step, after: Step) -> bool:
    """Whether the flow of a step is that of the steps around it, JUMP times as long or longer."""
    a, flow, b = before.flow, step.flow, after.flow
    if min(before.magnitude, after.magnitude) < MOVING or not similar(a, b):
        return False
    usual = (a + b) / 2
    factor = float((flow * usual).sum() / (usual**2).sum())
    return factor >= JUMP and similar(flow, factor * usual)


def similar(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(((a - b) ** 2).sum() <= ALIKE * ((a**2).sum() + (b**2).sum()))
