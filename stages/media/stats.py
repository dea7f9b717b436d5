"""Statistics of a clip, gathered while its frames pass: what drifts in a chain shows here first."""

import cv2
import numpy as np

from stages.runtime.errors import ItemError


class ClipStatistics:
    """Colour and sharpness of a clip's first frame, last frame and whole, in the memory of one frame."""

    def __init__(self):
        self._first = self._last = None
        self._frames = 0
        self._sums = np.zeros(8)  # per frame: channel means, channel mean squares, saturation, sharpness

    def add(self, rgb: np.ndarray) -> None:
        """Take in the next frame, uint8 [H, W, 3]."""
        self._last = _moments(rgb)
        if self._first is None:
            self._first = self._last
        self._frames += 1
        self._sums += self._last

    def summary(self) -> dict:
        """{"frames": N, "first": F, "last": F, "whole": F}, each F a dict of floats on the scale of 0 to 255:

        `mean`, `std` ([R, G, B]), `saturation` (mean of max - min over the channels) and `sharpness` (variance of the
        Laplacian of the luma). `whole` pools all pixels for mean and std and averages the others over frames.
        """
        if not self._frames:
            raise ItemError("a clip without frames has no statistics", "add at least one frame")
        return {
            "frames": self._frames,
            "first": _named(self._first),
            "last": _named(self._last),
            "whole": _named(self._sums / self._frames),
        }


def _moments(rgb: np.ndarray) -> np.ndarray:
    mean, std = (values.ravel() for values in cv2.meanStdDev(rgb))
    high, low = rgb.max(axis=2), rgb.min(axis=2)
    laplacian = cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_32F)
    return np.concatenate([mean, std**2 + mean**2, [cv2.mean(high - low)[0], laplacian.var(dtype=np.float64)]])


def _named(moments: np.ndarray) -> dict:
    mean, squares, saturation, sharpness = moments[:3], moments[3:6], moments[6], moments[7]
    return {
        "mean": mean.tolist(),
        "std": np.sqrt((squares - mean**2).clip(0)).tolist(),
        "saturation": float(saturation),
        "sharpness": float(sharpness),
    }
