"""Where the pixels of a frame are seen in another one, near or far, and at which of them that can be relied on.

Such a correspondence is a map: float32 [H, W, 2], for each pixel of one frame the place (x, y) in the other, in pixels.
Maps are composed by sampling one with the other, so that along a chain of frames the picture itself is sampled only once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

SMALLEST = 16  # pixels a side: in less there is no flow to be found
NEIGHBOURHOOD = (5, 5)  # pixels that a colour is compared in, so that noise does not decide


@dataclass(frozen=True, eq=False)
class Match:
    """How `frame`, RGB, uint8 [H, W, 3], is found in the key: `places`, a map, and `trusted`, bool [H, W], where that can be
    relied on.
    """

    frame: np.ndarray
    places: np.ndarray
    trusted: np.ndarray


def grid(shape: tuple[int, ...]) -> np.ndarray:
    """The map of a picture of `shape` (height, width, ...) onto itself."""
    rows, columns = np.indices(shape[:2], np.float32)
    return np.stack([columns, rows], axis=-1)


def correspondence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The map of `a` into `b`, both RGB, uint8 [H, W, 3]; of pictures under 16 pixels a side, that onto itself.

    DIS optical flow (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016), OpenCV's medium preset.
    """
    if min(a.shape[:2]) < SMALLEST:
        return grid(a.shape)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return grid(a.shape) + dis.calc(cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), cv2.cvtColor(b, cv2.COLOR_RGB2GRAY), None)


def sample(picture: np.ndarray, places: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """`picture` [H, W, ...] at `places`, a map; beyond its border, the border. A map sampled by a map is their composition.

    Bilinear, unless told otherwise.
    """
    return cv2.remap(picture, places, None, interpolation, borderMode=cv2.BORDER_REPLICATE)


def consistent(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Where going `there` and `back`, two maps, leads home, bool [H, W]: |f + b| <= 0.01 (|f| + |b|) + 0.5 pixels.

    The test of GMFlow (Xu et al., CVPR 2022). What lies outside of the other picture is not consistent.
    """
    here = grid(there.shape)
    returned = sample(back, there)
    height, width = there.shape[:2]
    inside = (there >= 0).all(axis=-1) & (there[..., 0] <= width - 1) & (there[..., 1] <= height - 1)
    length = np.linalg.norm(there - here, axis=-1) + np.linalg.norm(returned - there, axis=-1)
    return inside & (np.linalg.norm(returned - here, axis=-1) <= 0.01 * length + 0.5)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean distance of two pictures, uint8 [H, W, 3], around each pixel, in levels: float32 [H, W]."""
    return cv2.blur(cv2.absdiff(a, b).mean(axis=-1, dtype=np.float32), NEIGHBOURHOOD)


def matches(key: np.ndarray, frames: Iterable[np.ndarray], residual: float) -> Iterator[Match]:
    """How each of `frames`, RGB, uint8 [H, W, 3], is found in `key`, the frame before the first of them.

    Of the map composed along the chain and the direct one, each pixel takes the one by which the key's colour is nearer.
    It is trusted where that map is consistent and the colour differs by at most `residual` levels.
    """
    previous, to_key, from_key = key, grid(key.shape), grid(key.shape)
    for frame in frames:
        to_key = sample(to_key, correspondence(frame, previous))
        from_key = sample(correspondence(previous, frame), from_key)
        ways = [(to_key, from_key), (correspondence(frame, key), correspondence(key, frame))]
        apart = np.stack([difference(sample(key, there), frame) for there, _ in ways])
        sure = np.stack([consistent(there, back) for there, back in ways])
        nearer = (apart + 255 * ~sure).argmin(axis=0)
        places = np.where(nearer[..., None], ways[1][0], ways[0][0])
        trusted = np.take_along_axis(sure & (apart <= residual), nearer[None], axis=0)[0]
        yield Match(frame, places, trusted)
        previous = frame
