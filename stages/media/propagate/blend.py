"""Two sides: what was carried to a frame from the key before it and from the one behind it becomes one picture.

The blend of FRESCO (Yang et al., CVPR 2024) and Rerender A Video (Yang et al., SIGGRAPH Asia 2023), after "Stylizing Video
by Example" (Jamriska et al., 2019): each pixel's details come from the side with the smaller error, its tone from both.
"""

from __future__ import annotations

import cv2
import numpy as np

from stages.media.flow import correspondence, sample
from stages.media.propagate.engines import Carried

GRADIENT_WEIGHTS = (2.5, 0.5, 0.5)  # of L, a, b: how much an edge counts against a tone
STEEPEST = 100.0  # levels from pixel to pixel
LAB_SCALE = np.float32([2.55, 1, 1])  # L in 0 to 255, as a and b are wide


class Blend:
    """Blends the frames of an interval, in order. `poisson` joins the sides along their gradients.

    `from_behind`, uint8 [H, W], tells which pixels of the last frame were taken from the key behind.
    """

    def __init__(self, key_frame: np.ndarray, poisson: bool):
        self.poisson = poisson
        self._previous = key_frame
        self.from_behind = np.zeros(key_frame.shape[:2], np.uint8)

    def picture(self, frame: np.ndarray, before: Carried, behind: Carried, share: float) -> np.ndarray:
        """The picture of `frame`, uint8 [H, W, 3], which lies `share` (0 to 1) of the way to the key behind it.

        A point of the scene that has once been taken from the key behind stays with it.
        """
        moved = sample(self.from_behind, correspondence(frame, self._previous), cv2.INTER_NEAREST)
        self.from_behind = moved | (share * before.error >= (1 - share) * behind.error)
        self._previous = frame
        first, second = to_lab(before.picture), to_lab(behind.picture)
        take_second = self.from_behind[..., None] > 0
        mixed = mix(first, second, share, like=np.where(take_second, second, first))
        if self.poisson:
            steps = [np.where(take_second, *sides) for sides in zip(gradients(second), gradients(first))]
            mixed = screened_poisson(mixed, *steps)
        return to_rgb(mixed)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] as CIE L, a, b, float32; L is 0 to 255."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) * LAB_SCALE


def to_rgb(lab: np.ndarray) -> np.ndarray:
    rgb = cv2.cvtColor((lab / LAB_SCALE).astype(np.float32), cv2.COLOR_Lab2RGB)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def mix(first: np.ndarray, second: np.ndarray, share: float, like: np.ndarray) -> np.ndarray:
    """(1 - share) of `first` and `share` of `second`, [H, W, C], each channel with the mean and deviation of `like`.

    Averaging alone would lose contrast. The sides are standardised before it, their sum is after it.
    """
    mean, deviation = like.mean(axis=(0, 1)), like.std(axis=(0, 1))
    return standardised((1 - share) * standardised(first) + share * standardised(second)) * deviation + mean


def standardised(values: np.ndarray) -> np.ndarray:
    """Each channel with mean 0 and deviation 1; one without contrast is 0."""
    centred = values - values.mean(axis=(0, 1))
    deviation = centred.std(axis=(0, 1))
    return centred / np.where(deviation > 1e-3, deviation, np.inf)


def gradients(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences to the next row and to the next column, at most STEEPEST, [H, W, C]; 0 at the last ones."""
    down, right = np.zeros_like(values), np.zeros_like(values)
    down[:-1], right[:, :-1] = np.diff(values, axis=0), np.diff(values, axis=1)
    return np.clip(down, -STEEPEST, STEEPEST), np.clip(right, -STEEPEST, STEEPEST)


def screened_poisson(picture: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The u that minimises |u - picture|^2 + g^2 |grad u - (down, right)|^2 in each channel; all [H, W, 3], g as above.

    The normal equations have constant coefficients and the DCT diagonalises them: exact, without iterations. OpenCV's DCT
    wants even sides: to an odd one its last line is added once more.
    Source: Bhat et al., "Fourier Analysis of the 2D Screened Poisson Equation", ECCV 2008.
    """
    height, width = picture.shape[:2]
    even = ((0, height % 2), (0, width % 2), (0, 0))
    picture, down, right = (np.pad(values, even, "edge").astype(np.float64) for values in (picture, down, right))
    divergence = np.diff(down, axis=0, prepend=0) + np.diff(right, axis=1, prepend=0)
    frequencies = [2 - 2 * np.cos(np.pi * np.arange(side) / side) for side in picture.shape[:2]]
    laplacian = frequencies[0][:, None] + frequencies[1]
    solved = [
        cv2.idct(cv2.dct(picture[..., c] - g**2 * divergence[..., c]) / (1 + g**2 * laplacian))
        for c, g in enumerate(GRADIENT_WEIGHTS)
    ]
    return np.stack(solved, axis=-1)[:height, :width]
