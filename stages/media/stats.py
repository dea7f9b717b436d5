"""Statistics of a clip, collected frame by frame; drift along a chain shows here first."""

import cv2
import numpy as np

from stages.runtime.errors import ItemError


class ClipStatistics:
    """Colour and sharpness of a clip's first frame, of its last frame and of all frames, in the memory of one frame."""

    def __init__(self) -> None:
        self._first: np.ndarray | None = None
        self._last: np.ndarray | None = None
        self._frames = 0
        self._sums = np.zeros(8)  # per frame: channel means, channel mean squares, saturation, sharpness

    def add(self, rgb: np.ndarray) -> None:
        """Add the next frame, RGB, uint8 [H, W, 3]."""
        self._last = _moments(rgb)
        if self._first is None:
            self._first = self._last
        self._frames += 1
        self._sums += self._last

    def summary(self) -> dict:
        """{"frames": N, "first": F, "last": F, "whole": F}, each F a dict of floats on the scale of 0 to 255:

        `mean`, `std` ([R, G, B]), `saturation` (mean of max - min over the channels) and `sharpness` (variance of the
        Laplacian of the luma). `whole` pools all pixels for mean and std and averages the others over frames.
        Raises ItemError for a clip without frames.
        """
        if self._first is None or self._last is None:
            raise ItemError("a clip without frames has no statistics", "add at least one frame")
        return {
            "frames": self._frames,
            "first": _as_fields(self._first),
            "last": _as_fields(self._last),
            "whole": _as_fields(self._sums / self._frames),
        }


def _moments(rgb: np.ndarray) -> np.ndarray:
    mean, std = (values.ravel() for values in cv2.meanStdDev(rgb))
    red, green, blue = cv2.split(rgb)
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    laplacian = cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    return np.concatenate([mean, std**2 + mean**2, [cv2.mean(cv2.subtract(high, low))[0], laplacian.var(dtype=np.float64)]])


def _as_fields(moments: np.ndarray) -> dict:
    mean, squares, saturation, sharpness = moments[:3], moments[3:6], moments[6], moments[7]
    return {
        "mean": mean.tolist(),
        "std": np.sqrt((squares - mean**2).clip(0)).tolist(),
        "saturation": float(saturation),
        "sharpness": float(sharpness),
    }
