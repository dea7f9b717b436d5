"""What the scores measure of a frame and of the step from a frame to the next; each measure is taken only if it is read."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np

from stages.media.flow import MIN_SIDE, correspondence, grid, is_consistent, lengths

LONGER_SIDE = 224  # pixels of the reduced frames, in which flow and colours are measured
SAME_MEAN = 0.001  # of the range: the noise that ffmpeg's freezedetect tolerates by default
SAME_LARGEST = 10  # levels in a reduced frame: a small thing that moves changes more
PLAIN, PLAIN_LARGEST = 5, 16  # levels that most of a frame of one colour spreads over, and all of it
CUT = 0.1  # of the range: the threshold of ffmpeg's scdet
CLIPPED_LOW, CLIPPED_HIGH = 2, 253
NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def reduced_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of reduced frames: a longer side of 224 pixels at most, and a shorter one that has a flow."""
    scale = min(1.0, max(LONGER_SIDE / max(width, height), MIN_SIDE / min(width, height)))
    return max(1, round(width * scale)), max(1, round(height * scale))


@lru_cache(maxsize=1)
def still(shape: tuple[int, ...]) -> np.ndarray:
    """The map of a frame into an equal one."""
    return grid(shape)


class Look:
    """A frame, RGB, uint8 [H, W, 3], shown at `time` seconds, and its measures.

    `small` is the frame at the reduced size, averaged over areas.
    """

    def __init__(self, index: int, time: float, rgb: np.ndarray, size: tuple[int, int] | None = None):
        self.index, self.time, self.rgb = index, time, rgb
        self._size = size or reduced_size(rgb.shape[1], rgb.shape[0])

    @cached_property
    def gray(self) -> np.ndarray:
        """The luma (BT.601's weights, full range), uint8 [H, W]."""
        return cv2.cvtColor(self.rgb, cv2.COLOR_RGB2GRAY)

    @cached_property
    def small(self) -> np.ndarray:
        if self.rgb.shape[1::-1] == self._size:
            return self.rgb
        return cv2.resize(self.rgb, self._size, interpolation=cv2.INTER_AREA)

    @cached_property
    def small_gray(self) -> np.ndarray:
        return cv2.cvtColor(self.small, cv2.COLOR_RGB2GRAY)

    @cached_property
    def luma(self) -> float:
        """Mean of the luma, in levels."""
        return self._moments[0]

    @cached_property
    def contrast(self) -> float:
        """Standard deviation of the luma, in levels."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[float, float]:
        mean, std = cv2.meanStdDev(self.gray)
        return float(mean[0, 0]), float(std[0, 0])

    @cached_property
    def saturation(self) -> float:
        """Mean of max - min over the channels, in levels."""
        red, green, blue = cv2.split(self.small)
        high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
        return float(cv2.mean(cv2.subtract(high, low))[0])

    @cached_property
    def lab(self) -> np.ndarray:
        """The mean of the pixels in CIE Lab (D65), float64 [3]: L* from 0 to 100, a*, b*."""
        pixels: Any = cv2.cvtColor(self.small.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
        return np.array(cv2.mean(pixels)[:3])

    @cached_property
    def sharpness(self) -> float:
        """Variance of the Laplacian of the luma, as in the statistics of a clip."""
        return float(cv2.meanStdDev(cv2.Laplacian(self.gray, cv2.CV_16S))[1][0, 0] ** 2)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of the noise of the luma, in levels; 0 for an image below 3x3 pixels.

        J. Immerkaer, "Fast noise variance estimation", Computer Vision and Image Understanding 64 (1996).
        """
        height, width = self.gray.shape
        if min(height, width) < 3:
            return 0.0
        filtered = cv2.filter2D(self.gray, cv2.CV_16S, NOISE_KERNEL)[1:-1, 1:-1]
        return float(np.sqrt(np.pi / 2) * cv2.norm(filtered, cv2.NORM_L1) / (6 * (width - 2) * (height - 2)))

    @cached_property
    def clipped(self) -> tuple[float, float]:
        """Shares of the channel values that are at the lower and at the upper end of their range."""
        counts = self._counts.sum(axis=0) / self._counts.sum()
        return float(counts[: CLIPPED_LOW + 1].sum()), float(counts[CLIPPED_HIGH:].sum())

    @cached_property
    def _counts(self) -> np.ndarray:
        """Histograms of the channels of the reduced frame, [3, 256]."""
        return np.stack([cv2.calcHist([self.small], [channel], None, [256], [0, 256]).ravel() for channel in range(3)])

    @cached_property
    def is_plain(self) -> bool:
        """Whether the frame is of one colour, black among them: nothing in it can move or be sharp."""
        return self._spread(0.02) <= PLAIN and self._spread(0) <= PLAIN_LARGEST

    def _spread(self, share: float) -> int:
        """Levels of a channel, of the one with most, without this share of the lowest and of the highest values."""
        shares = self._counts.cumsum(axis=1) / self._counts.sum(axis=1, keepdims=True)
        low, high = (shares <= share).sum(axis=1), (shares < 1 - share).sum(axis=1)
        return int((high - low).max())

    def darkness(self, level: int) -> float:
        """Share of the pixels of the reduced frame whose luma is at most `level`."""
        return float(np.count_nonzero(self.small_gray <= level) / self.small_gray.size)

    def change(self, other: Look) -> float:
        """Mean absolute difference of the luma of two frames, as a share of its 256 levels."""
        return cv2.norm(self.gray, other.gray, cv2.NORM_L1) / self.gray.size / 256

    def equals(self, other: Look, change: float | None = None) -> bool:
        """Whether two frames show the same but for the noise of a codec. `change` is that of the two, if it is known.

        The mean difference is what ffmpeg's freezedetect tolerates, and no place of the reduced frame differs much.
        """
        small = (self.change(other) if change is None else change) <= SAME_MEAN
        return bool(small and cv2.norm(self.small, other.small, cv2.NORM_INF) <= SAME_LARGEST)


class Step:
    """The step from a frame to the next, and its measures.

    `change_before` is the `change` of the step before; None for the first step, which is no cut then. `guide` is the step
    whose flow says what moves where: that of the source in a film that shows its source frame by frame, else this one.
    """

    def __init__(self, before: Look, after: Look, change_before: float | None = None, guide: Step | None = None):
        self.before, self.after, self._change_before = before, after, change_before
        self._guide = guide
        self.diagonal = float(np.hypot(*before.small.shape[:2]))

    @property
    def guide(self) -> Step:
        return self._guide or self

    @cached_property
    def difference(self) -> float:
        """Mean absolute difference of all channel values, in levels."""
        return float(cv2.norm(self.before.rgb, self.after.rgb, cv2.NORM_L1) / self.before.rgb.size)

    @cached_property
    def change(self) -> float:
        """Mean absolute difference of the luma, as a share of its 256 levels."""
        return self.before.change(self.after)

    @cached_property
    def is_cut(self) -> bool:
        """Whether the scene changes: the rule of ffmpeg's scdet, with its default threshold."""
        grown = 0.0 if self._change_before is None else abs(self.change - self._change_before)
        return min(self.change, grown) >= CUT

    @cached_property
    def is_plain(self) -> bool:
        """Whether one of the frames is of one colour, so that nothing can be said of motion."""
        return self.before.is_plain or self.after.is_plain

    @cached_property
    def is_same(self) -> bool:
        return self.before.equals(self.after, self.change)

    @cached_property
    def places(self) -> np.ndarray:
        """The map of the reduced frame before into the one after, float32 [h, w, 2]."""
        return correspondence(self.before.small, self.after.small)

    @cached_property
    def flow(self) -> np.ndarray:
        """The flow in pixels of the reduced frames, float32 [h, w, 2]."""
        return self.places - still(self.places.shape)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The lengths of the flow as shares of the diagonal, float32 [h, w]."""
        return lengths(self.flow) / self.diagonal

    @cached_property
    def magnitude(self) -> float:
        """Mean length of the flow, as a share of the diagonal."""
        return float(self.lengths.mean())

    @cached_property
    def is_visible(self) -> np.ndarray:
        """Where a pixel before is seen after too, bool [h, w]: forward and backward flow agree."""
        return is_consistent(self.places, correspondence(self.after.small, self.before.small))
