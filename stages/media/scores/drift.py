"""How the parts of a film depart from the first one, and from the source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from stages.media.scores.film import Figures, Film, Group
from stages.media.scores.frames import Look, Step
from stages.media.scores.series import Walk

MEASURES = ("luma", "saturation", "contrast", "sharpness")


class Part:
    """The mean look of the frames of a part."""

    def __init__(self, looks: Iterable[Look] = ()):
        self._frames, self._sum = 0, np.zeros(3 + len(MEASURES))
        for look in looks:
            self.add(look)

    def add(self, look: Look) -> None:
        self._frames += 1
        self._sum += [*look.lab, *(getattr(look, name) for name in MEASURES)]

    @property
    def lab(self) -> np.ndarray:
        return self._sum[:3] / self._frames

    def __getitem__(self, name: str) -> float:
        return float(self._sum[3 + MEASURES.index(name)] / self._frames)


class Drift(Group):
    def __init__(self, film: Film):
        super().__init__(film)
        self._names = [name for name, count in film.parts if count]
        self._starts = set(film.starts)
        self._parts: list[Part] = []

    def add(self, look: Look, step: Step | None) -> None:
        if len(self._starts) < 2:
            return
        if look.index in self._starts:
            self._parts.append(Part())
        self._parts[-1].add(look)

    def details(self) -> list[dict[str, Any]]:
        return [
            {
                "part": name,
                "colour": float(np.linalg.norm(part.lab - self._parts[0].lab)),
                **{measure: part[measure] for measure in MEASURES},
            }
            for name, part in zip(self._names, self._parts)
        ]

    def figures(self) -> Figures:
        if len(self._parts) < 2:
            return {}
        first, last = self._parts[0], self._parts[-1]
        lab = Walk()
        walks = {name: Walk() for name in MEASURES}
        for number, part in enumerate(self._parts):
            lab.add(number, part.lab)
            for name, walk in walks.items():
                walk.add(number, part[name])
        slopes = {name: float(walk.slope[0]) for name, walk in walks.items() if walk.slope is not None}
        found: Figures = {
            "colour": float(np.linalg.norm(last.lab - first.lab)),
            "colour_slope": float(np.linalg.norm(lab.slope)) if lab.slope is not None else None,
            "luma_slope": slopes["luma"],
            "saturation_slope": slopes["saturation"],
            "contrast_slope": slopes["contrast"] / first["contrast"] if first["contrast"] else None,
            "sharpness_slope": slopes["sharpness"] / first["sharpness"] if first["sharpness"] else None,
        }
        if self.film.source:
            source = Part(self.film.source)
            found |= {
                "source_colour": float(np.linalg.norm(last.lab - source.lab)),
                "source_contrast": last["contrast"] / source["contrast"] if source["contrast"] else None,
                "source_sharpness": last["sharpness"] / source["sharpness"] if source["sharpness"] else None,
            }
        return found
