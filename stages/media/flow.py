"""Dense correspondence between frames, near or far apart, and where it is reliable.

A correspondence is a map: float32 [H, W, 2], for each pixel of one frame the place (x, y) in the other, in pixels. Maps are
composed by sampling one with the other, so that an image is sampled only once along a chain of frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

MIN_SIDE = 16  # pixels: DIS finds no flow in smaller images
NEIGHBOURHOOD = (5, 5)  # pixels over which colours are averaged, against noise


@dataclass(frozen=True, eq=False)
class Match:
    """The correspondence of `frame`, RGB, uint8 [H, W, 3], with the key: the map `places`, and where it is `reliable`,
    bool [H, W].
    """

    frame: np.ndarray
    places: np.ndarray
    reliable: np.ndarray


def grid(shape: tuple[int, ...]) -> np.ndarray:
    """The identity map of an image of `shape` (height, width, ...), float32 [H, W, 2]."""
    rows, columns = np.indices(shape[:2], np.float32)
    return np.stack([columns, rows], axis=-1)


def correspondence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The map of `a` into `b`, both RGB, uint8 [H, W, 3]; the identity for images under 16 pixels a side.

    DIS optical flow (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016), OpenCV's medium preset.
    """
    if min(a.shape[:2]) < MIN_SIDE:
        return grid(a.shape)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow: Any = None  # the stub has no overload without an array to write to
    return grid(a.shape) + dis.calc(cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), cv2.cvtColor(b, cv2.COLOR_RGB2GRAY), flow)


def sample(image: np.ndarray, places: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Sample an image [H, W, ...] at the map `places`; places outside take the value at the border.

    A map sampled by another map is their composition. `interpolation` is OpenCV's, by default bilinear.
    """
    second: Any = None  # the stub has no overload for a map of one array
    return cv2.remap(image, places, second, interpolation, borderMode=cv2.BORDER_REPLICATE)


def is_consistent(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Forward-backward consistency of two maps, bool [H, W]: |f + b| <= 0.01 (|f| + |b|) + 0.5 pixels.

    The test of GMFlow (Xu et al., CVPR 2022). Places outside the other image are not consistent.
    """
    here = grid(there.shape)
    returned = sample(back, there)
    height, width = there.shape[:2]
    inside = (there >= 0).all(axis=-1) & (there[..., 0] <= width - 1) & (there[..., 1] <= height - 1)
    length = lengths(there - here) + lengths(returned - there)
    return inside & (lengths(returned - here) <= 0.01 * length + 0.5)


def lengths(vectors: np.ndarray) -> np.ndarray:
    """The lengths of vectors [..., 2]: numpy.linalg.norm, several times as fast."""
    x, y = vectors[..., 0], vectors[..., 1]
    return np.sqrt(x * x + y * y)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of two images, uint8 [H, W, 3], around each pixel, in levels: float32 [H, W]."""
    return cv2.blur(cv2.absdiff(a, b).mean(axis=-1, dtype=np.float32), NEIGHBOURHOOD)


def match_frames(key: np.ndarray, frames: Iterable[np.ndarray], residual: float) -> Iterator[Match]:
    """Yield the correspondence of each of `frames`, RGB, uint8 [H, W, 3], with `key`, the frame before the first of them.

    There are two maps: one composed along the chain of frames, and the direct one. Each pixel takes the map by which the
    key's colour is nearer. It is reliable where that map is consistent and the colour differs by at most `residual` levels.
    """
    previous, to_key, from_key = key, grid(key.shape), grid(key.shape)
    for frame in frames:
        to_key = sample(to_key, correspondence(frame, previous))
        from_key = sample(correspondence(previous, frame), from_key)
        ways = [(to_key, from_key), (correspondence(frame, key), correspondence(key, frame))]
        errors = np.stack([difference(sample(key, there), frame) for there, _ in ways])
        valid = np.stack([is_consistent(there, back) for there, back in ways])
        nearer = (errors + 255 * ~valid).argmin(axis=0)
        places = np.where(nearer[..., None], ways[1][0], ways[0][0])
        reliable = np.take_along_axis(valid & (errors <= residual), nearer[None], axis=0)[0]
        yield Match(frame, places, reliable)
        previous = frame
