"""Is the film whole? Faulty frames, blur and blocks, and brightness, saturation and colour over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import av
from av.filter import Graph

from stages.media.filters import buffer_source, link_filters
from stages.media.scores.film import Figures, Film, Group
from stages.media.scores.frames import Look, Step
from stages.media.scores.series import Mean, Walk

FREEZE = 0.5  # seconds that a frame stands still before it counts as frozen
BLACK_LEVEL, BLACK_SHARE = 10, 0.98  # the share is that of ffmpeg's blackdetect, whose level, 25, is that of a dark night
NOISY, LEAST_CONTRAST = 0.35, 8.0  # noise as a share of the contrast; levels
SATURATED, BOTH_ENDS = 0.3, 0.05  # shares of values that are newly clipped: in all, and at the end with fewer of them
EVERY = 8  # frames of which one is filtered by ffmpeg, which costs as much as all other measures together
LAPLACIAN = 20.0  # variance of the Laplacian of noise of variance 1: the squares of its weights together
LEAST_SIDE = 32  # pixels that its filters and the estimate of noise need
FILTERS = {"blurdetect": "lavfi.blur", "blockdetect": "lavfi.block"}  # and the metadata that they write
FAULTS = ("frozen", "black", "flat", "exploding")


class Fault:
    """The frames with a fault."""

    def __init__(self) -> None:
        self.count = 0
        self.first: float | None = None

    def add(self, count: int, time: float) -> None:
        self.count, self.first = self.count + count, time if self.first is None else self.first


class Freeze:
    """Finds frames that show the same as an earlier one for a while, as ffmpeg's freezedetect does."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._still: Look | None = None
        self._waiting = 0

    def add(self, look: Look) -> int:
        """Add the next frame. Returns the number of frames that are known now to be frozen: this one and waiting ones."""
        if self._still is None or not self._still.equals(look):
            self._still, self._waiting = look, 0
            return 0
        self._waiting += 1
        if look.time - self._still.time < self._seconds - 1e-6:
            return 0
        frozen, self._waiting = self._waiting, 0
        return frozen

    def reset(self) -> None:
        self._still, self._waiting = None, 0

    @property
    def since(self) -> float:
        return self._still.time if self._still else 0.0


class Health(Group):
    def __init__(self, film: Film):
        super().__init__(film)
        self._faults = {name: Fault() for name in FAULTS}
        self._freeze = Freeze(min(FREEZE, max(float(film.times[-1]), 1e-3)))
        self._usual = None if film.is_aligned else mean_clipped(film.source)
        self._filtered = {name: Mean() for name in FILTERS}
        self._frames = 0
        self._sharpness, self._noise, self._clipped = Mean(), Mean(), Mean()
        self._luma, self._saturation, self._colour = Walk(), Walk(), Walk()

    def add(self, look: Look, step: Step | None) -> None:
        self._frames += 1
        if fault := self._fault(look):
            self._faults[fault].add(1, look.time)
            self._freeze.reset()
        elif frozen := self._freeze.add(look):
            self._faults["frozen"].add(frozen, self._freeze.since)
        if not fault:  # a faulty frame is counted, and tells nothing of the others
            self._luma.add(look.time, look.luma)
            self._saturation.add(look.time, look.saturation)
            self._colour.add(look.time, look.lab[1:])
        if look.is_plain:
            return
        self._sharpness.add(look.sharpness)
        self._clipped.add(sum(look.clipped))
        if look.index % EVERY == 0 or look.index == len(self.film.times) - 1:
            self._noise.add(look.noise)
            if min(look.gray.shape) >= LEAST_SIDE:
                self._filter(look)

    def _fault(self, look: Look) -> str:
        """The fault that a frame has by itself, or "". A frame has one fault: a black one is not flat too."""
        if look.is_plain:
            return "black" if look.darkness(BLACK_LEVEL) >= BLACK_SHARE else "flat"
        if look.contrast >= LEAST_CONTRAST and is_noise(look):
            return "exploding"
        self._usual = self._usual or look.clipped
        grown = [max(0.0, now - usual) for now, usual in zip(look.clipped, self._usual)]
        return "exploding" if sum(grown) >= SATURATED and min(grown) >= BOTH_ENDS else ""

    def _filter(self, look: Look) -> None:
        frame = av.VideoFrame.from_ndarray(look.gray, format="gray")
        graph = Graph()  # one for each frame: blockdetect mixes a frame with those before it
        graph.threads = 1
        link_filters(graph, buffer_source(graph, frame), *map(graph.add, FILTERS)).push(frame)
        found: Any = graph.pull()
        for name, key in FILTERS.items():
            value = float(found.metadata.get(key, "nan"))
            if math.isfinite(value):  # a frame without edges has no blur
                self._filtered[name].add(value)

    def figures(self) -> Figures:
        faulty = sum(fault.count for fault in self._faults.values())
        found: Figures = {"faulty_share": faulty / self._frames}
        for name, fault in self._faults.items():
            found |= {f"{name}_frames": fault.count, f"{name}_share": fault.count / self._frames, f"{name}_at": fault.first}
        slope = self._colour.slope
        return found | {
            "blur": self._filtered["blurdetect"].value,
            "blockiness": self._filtered["blockdetect"].value,
            "sharpness": self._sharpness.value,
            "noise": self._noise.value,
            "clipped_share": self._clipped.value,
            **self._luma.figures("luma"),
            **self._saturation.figures("saturation"),
            "colour_slope": None if slope is None else math.hypot(*slope),
            "colour_range": self._colour.farthest,
        }


def is_noise(look: Look) -> bool:
    """Whether the noise makes up much of the contrast. It is estimated only where the Laplacian leaves that open."""
    least = NOISY * look.contrast
    if min(look.gray.shape) < LEAST_SIDE:  # there, detail is as fine as noise
        return False
    return look.sharpness >= LAPLACIAN * least**2 / 4 and look.noise >= least


def mean_clipped(looks: Sequence[Look]) -> tuple[float, float] | None:
    """The mean shares of clipped values; None without frames."""
    if not looks:
        return None
    low, high = zip(*(look.clipped for look in looks))
    return sum(low) / len(low), sum(high) / len(high)
