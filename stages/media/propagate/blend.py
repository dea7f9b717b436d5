"""Blending of two propagated images of a frame: one from the keyframe before it, one from the keyframe after it.

The method of FRESCO (Yang et al., CVPR 2024) and Rerender A Video (Yang et al., SIGGRAPH Asia 2023), after "Stylizing Video
by Example" (Jamriska et al., 2019): details of a pixel come from the image with the smaller error, its tone from both.
"""

from __future__ import annotations

import cv2
import numpy as np

from stages.media.flow import correspondence, sample
from stages.media.propagate.engines import Propagated

GRADIENT_WEIGHTS = (2.5, 0.5, 0.5)  # of L, a, b: weight of gradients relative to values
MAX_GRADIENT = 100.0  # levels from pixel to pixel
LAB_SCALE = np.array([2.55, 1, 1], np.float32)  # L in 0 to 255, a range like that of a and b


class Blend:
    """Blends the frames of an interval between keyframes, in order. `poisson` also blends gradients.

    `from_after`, uint8 [H, W], is 1 where the details of the latest frame came from the keyframe after it.
    """

    def __init__(self, key_frame: np.ndarray, poisson: bool):
        self.poisson = poisson
        self._previous = key_frame
        self.from_after: np.ndarray = np.zeros(key_frame.shape[:2], np.uint8)

    def blend(self, frame: np.ndarray, before: Propagated, after: Propagated, share: float) -> np.ndarray:
        """The translated image of `frame`, uint8 [H, W, 3], at `share` (0 to 1) of the interval.

        Once the details of a point of the scene come from the keyframe after it, they do so in all later frames.
        """
        moved = sample(self.from_after, correspondence(frame, self._previous), cv2.INTER_NEAREST)
        self.from_after = moved | (share * before.error >= (1 - share) * after.error)
        self._previous = frame
        first, second = to_lab(before.image), to_lab(after.image)
        take_second = self.from_after[..., None] > 0
        mixed = mix(first, second, share, like=np.where(take_second, second, first))
        if self.poisson:
            down, right = (np.where(take_second, *pair) for pair in zip(gradients(second), gradients(first)))
            mixed = screened_poisson(mixed, down, right)
        return to_rgb(mixed)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """RGB, uint8 [H, W, 3], to CIE Lab, float32, with L in 0 to 255."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab) * LAB_SCALE


def to_rgb(lab: np.ndarray) -> np.ndarray:
    """The inverse of `to_lab`, rounded to uint8 [H, W, 3]."""
    rgb = cv2.cvtColor((lab / LAB_SCALE).astype(np.float32), cv2.COLOR_Lab2RGB)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def mix(first: np.ndarray, second: np.ndarray, share: float, like: np.ndarray) -> np.ndarray:
    """The weighted mean of two images, [H, W, C], with the mean and standard deviation of `like` in each channel.

    `share` is the weight of `second`. A mean alone would lose contrast, so both images and their mean are standardised.
    """
    mean, deviation = like.mean(axis=(0, 1)), like.std(axis=(0, 1))
    return standardise((1 - share) * standardise(first) + share * standardise(second)) * deviation + mean


def standardise(values: np.ndarray) -> np.ndarray:
    """Scale each channel to mean 0 and standard deviation 1; a channel without contrast becomes 0."""
    centred = values - values.mean(axis=(0, 1))
    deviation = centred.std(axis=(0, 1))
    return centred / np.where(deviation > 1e-3, deviation, np.inf)


def gradients(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences to the next row and to the next column, [H, W, C], clipped to `MAX_GRADIENT`; 0 in the last ones."""
    down, right = np.zeros_like(values), np.zeros_like(values)
    down[:-1], right[:, :-1] = np.diff(values, axis=0), np.diff(values, axis=1)
    return np.clip(down, -MAX_GRADIENT, MAX_GRADIENT), np.clip(right, -MAX_GRADIENT, MAX_GRADIENT)


def screened_poisson(image: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The u that minimises |u - image|^2 + g^2 |grad u - (down, right)|^2 in each channel; all are [H, W, 3].

    g are the `GRADIENT_WEIGHTS`. The normal equations have constant coefficients, and the DCT diagonalises them: the
    solution is exact, without iterations. OpenCV's DCT needs even sides: the last line of an odd side is repeated.
    Source: Bhat et al., "Fourier Analysis of the 2D Screened Poisson Equation", ECCV 2008.
    """
    height, width = image.shape[:2]
    even = ((0, height % 2), (0, width % 2), (0, 0))
    image, down, right = (np.pad(values, even, "edge").astype(np.float64) for values in (image, down, right))
    divergence = np.diff(down, axis=0, prepend=0) + np.diff(right, axis=1, prepend=0)
    frequencies = [2 - 2 * np.cos(np.pi * np.arange(side) / side) for side in image.shape[:2]]
    laplacian = frequencies[0][:, None] + frequencies[1]
    solved = [
        cv2.idct(cv2.dct(image[..., c] - g**2 * divergence[..., c]) / (1 + g**2 * laplacian))
        for c, g in enumerate(GRADIENT_WEIGHTS)
    ]
    return np.stack(solved, axis=-1)[:height, :width]
