"""What happens where a part of the film ends and the next begins."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from stages.media.scores.film import Figures, Film, Group
from stages.media.scores.frames import Look, Step
from stages.media.scores.motion import STILL

WINDOW = 8  # steps before and after a seam that it is compared with
STALLED = 0.25  # of the motion before: less is a stall


class Seam:
    """A seam: the step across it, the steps before, and those after as they come."""

    def __init__(self, step: Step, name: str, before: list[tuple[float, float]]):
        self.row: dict[str, Any] = {
            "frame": step.after.index,
            "time": step.after.time,
            "part": name,
            "pixels": step.difference,
            "colour": float(np.linalg.norm(step.after.lab - step.before.lab)),
        }
        self._differences = [difference for difference, _ in before]
        self._motion = float(np.mean([magnitude for _, magnitude in before])) if before else 0.0
        self._after: list[float] = []
        self._stall, self._stands = 0, self._motion >= STILL
        self._count_stall(step)

    def add(self, step: Step) -> None:
        """Add a step after the seam, within its part."""
        self._count_stall(step)
        if len(self._after) < WINDOW and not step.is_cut:
            self._after.append(step.magnitude)
            self._differences.append(step.difference)

    def _count_stall(self, step: Step) -> None:
        self._stands = self._stands and not step.is_cut and step.magnitude < STALLED * self._motion
        self._stall += self._stands

    def closed(self) -> dict[str, Any]:
        """The row of the seam. A figure is None where there is nothing to compare with."""
        around = float(np.median(self._differences)) if self._differences else 0.0
        moved = self._motion >= STILL
        ratio = float(np.mean(self._after)) / self._motion if moved and self._after else None
        return {
            **self.row,
            "pixels_ratio": self.row["pixels"] / around if around > 0 else None,
            "motion_before": self._motion,
            "motion_ratio": ratio,
            "stall_frames": self._stall if moved else None,
        }


class Seams(Group):
    def __init__(self, film: Film):
        super().__init__(film)
        names = [(number, name) for number, (name, count) in enumerate(film.parts) if count]
        parts = list(zip(film.starts, names))[1:]
        self._begins = {start: name for start, (number, name) in parts if number not in film.cuts}
        self._cuts = {start for start, (number, _) in parts if number in film.cuts}
        self._before: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._open: Seam | None = None
        self._rows: list[dict[str, Any]] = []

    def add(self, look: Look, step: Step | None) -> None:
        if step is None or not self._begins:
            return
        if look.index in self._cuts:
            self._close()
            self._before.clear()
            return
        if look.index in self._begins:
            self._close()
            self._open = Seam(step, self._begins[look.index], list(self._before))
            self._before.clear()
            return
        if self._open:
            self._open.add(step)
        if step.is_cut:
            self._before.clear()  # what was before a cut is no measure of what comes
        else:
            self._before.append((step.difference, step.magnitude))

    def _close(self) -> None:
        if self._open:
            self._rows.append(self._open.closed())
        self._open = None

    def details(self) -> list[dict[str, Any]]:
        self._close()
        return self._rows

    def figures(self) -> Figures:
        rows = self.details()
        if not rows:
            return {"count": 0}
        worst = {"pixels": max, "pixels_ratio": max, "colour": max, "motion_ratio": min, "stall_frames": max}
        found = {name: [row[name] for row in rows if row[name] is not None] for name in worst}
        return {"count": len(rows), **{name: pick(found[name], default=None) for name, pick in worst.items()}}
