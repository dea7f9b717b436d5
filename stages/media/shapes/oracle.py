"""Reading of a shapes world clip from its pixels by classical vision, without a network and without its scene.

The background is the most common tone. The shape is what differs from it, after the frame is rolled until the shape is in
the middle. Its colour is the nearest of the palette, and its outline the best match in the same bounding box. Its motion is
a straight line through the centres of its boxes; the borders of a frame wrap around.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stages.media.shapes.world import BACKGROUNDS, COLORS, SHAPES, SPEEDS, signed_distance

CONTRAST = 35  # levels, of a shape at least
AREA = (40, 640)  # pixels of a shape in a frame of 64 x 64
COLOR_DISTANCE = 70  # in RGB, at most
OVERLAP = 0.6  # intersection over union with the best outline, at least
MIN_SPEED = 0.3  # pixels per frame in a frame of 64 x 64
MAX_JITTER = 1.5  # pixels of 64, root mean square
MIN_PRESENT = 0.6  # share of frames with a shape


@dataclass(frozen=True)
class Reading:
    """The oracle's reading of a clip; None for a property that it cannot determine.

    `centers` float [T, 2] are pixels (x, y), NaN in frames without a shape. `present` is the share of frames with a shape.
    `jitter` is the root mean square distance from uniform motion, in pixels of a 64-pixel frame. `junk` is the share of the
    foreground that is not the shape.
    """

    color: str | None
    shape: str | None
    direction: str | None
    speed: str | None
    background: str
    centers: np.ndarray
    present: float
    jitter: float
    junk: float


def read(video: np.ndarray) -> Reading:
    """Read a clip, RGB, uint8 [T, H, W, 3]."""
    video = np.asarray(video, np.float32)
    count, height, width, _ = video.shape
    size, unit = np.array([width, height]), min(height, width) / 64
    tone = background_tone(video)
    background = min(BACKGROUNDS, key=lambda name: float(np.linalg.norm(tone - BACKGROUNDS[name])))
    centers = np.full((count, 2), np.nan)
    junk, tones, overlaps = np.zeros(count), [], []
    for t, frame in enumerate(video):
        difference = abs(frame - tone).max(axis=-1)
        shift = centring_shift(difference)
        frame, difference = (np.roll(image, shift[::-1], axis=(0, 1)) for image in (frame, difference))
        mask, junk[t] = find_shape(difference, unit)
        if mask is None:
            continue
        centers[t] = (np.array(box_center(mask)) - shift) % size
        core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        tones.append(frame[core if core.sum() >= 4 else mask].mean(axis=0))
        overlaps.append([overlap(name, mask) for name in SHAPES])
    seen = ~np.isnan(centers[:, 0])
    present, beside = float(seen.mean()), float(junk.mean())
    if seen.sum() < max(3, MIN_PRESENT * count):
        return Reading(None, None, None, None, background, centers, present, np.nan, beside)
    shape_tone, fit = np.median(tones, axis=0), np.mean(overlaps, axis=0)
    nearest = min(COLORS, key=lambda name: float(np.linalg.norm(shape_tone - COLORS[name])))
    color = nearest if np.linalg.norm(shape_tone - COLORS[nearest]) < COLOR_DISTANCE else None
    shape = SHAPES[int(fit.argmax())] if fit.max() > OVERLAP else None
    direction, speed, jitter = motion(np.flatnonzero(seen), centers[seen] / unit, size / unit)
    return Reading(color, shape, direction, speed, background, centers, present, jitter, beside)


def background_tone(video: np.ndarray) -> np.ndarray:
    """The RGB of the background: the median of all pixels, most of which are background."""
    return np.median(video[::4].reshape(-1, 3), axis=0)


def centring_shift(difference: np.ndarray) -> np.ndarray:
    """The roll (x, y) in pixels that brings the foreground to the middle; `difference` [H, W] is that to the background.

    Along a border that wraps around, the mean place is the direction of the mean on a circle.
    """
    height, width = difference.shape
    weight = np.maximum(difference - CONTRAST, 0)
    shift = []
    for axis, size in ((0, width), (1, height)):
        circle = np.exp(2j * np.pi * (np.arange(size) + 0.5) / size)
        place = np.angle((weight.sum(axis=axis) * circle).sum()) * size / (2 * np.pi)
        shift.append(round(size / 2 - place))
    return np.array(shift)


def find_shape(difference: np.ndarray, unit: float) -> tuple[np.ndarray | None, float]:
    """The mask of the largest foreground component, or None if it has not the size of a shape; and the share of junk."""
    contrast = np.percentile(difference, 99)
    if contrast < CONTRAST:
        return None, 0.0
    count, labels, boxes, _ = cv2.connectedComponentsWithStats((difference > contrast / 2).astype(np.uint8), connectivity=8)
    if count < 2:
        return None, 0.0
    largest = 1 + int(boxes[1:, cv2.CC_STAT_AREA].argmax())
    area = boxes[largest, cv2.CC_STAT_AREA]
    junk = 1 - area / boxes[1:, cv2.CC_STAT_AREA].sum()
    if not AREA[0] * unit**2 <= area <= AREA[1] * unit**2:
        return None, junk
    return labels == largest, junk


def box_center(mask: np.ndarray) -> tuple[float, float]:
    """x and y of the middle of a mask's bounding box, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2


def overlap(shape: str, mask: np.ndarray) -> float:
    """Intersection over union of a mask with a shape that fills the same bounding box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    half = ((rows[-1] - rows[0] + 1) + (columns[-1] - columns[0] + 1)) / 4
    x, y = box_center(mask)
    grid_y, grid_x = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]] + 0.5
    if shape == "square":
        radius = half / 0.9
    elif shape == "ring":
        radius = half
    else:  # from the box of an equilateral triangle to its centre of gravity
        radius, y = half / 0.931, y + half * 0.31
    template = signed_distance(shape, grid_x - x, grid_y - y, radius) < 0
    return float((template & mask).sum() / max(1, (template | mask).sum()))


def uniform_motion(times: np.ndarray, centers: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, float]:
    """The velocity [2] of the straight line through centres [N, 2] at `times`, and their root mean square distance from it.

    Both are in the unit of `centers`. The borders of the frame, of `size` (width, height), wrap around. Between two centres
    the shape is assumed to move along the shortest path.
    """
    path = np.stack([np.unwrap(centers[:, axis], period=size[axis]) for axis in (0, 1)], axis=1)
    design = np.stack([times, np.ones_like(times)], axis=1).astype(float)
    solution, *_ = np.linalg.lstsq(design, path, rcond=None)
    return solution[0], float(np.sqrt(((path - design @ solution) ** 2).sum() / len(times)))


def motion(times: np.ndarray, centers: np.ndarray, size: np.ndarray) -> tuple[str | None, str | None, float]:
    """Direction, speed and jitter of centres [N, 2] at `times`, in pixels of a 64-pixel frame whose borders wrap around."""
    velocity, jitter = uniform_motion(times, centers, size)
    axis = int(abs(velocity).argmax())
    speed, drift = abs(velocity[axis]), abs(velocity[1 - axis])
    if speed < MIN_SPEED or drift > 0.5 * speed or jitter > MAX_JITTER:
        return None, None, jitter
    direction = (("left", "right"), ("up", "down"))[axis][int(velocity[axis] > 0)]
    name = min(SPEEDS, key=lambda name: abs(np.log(speed / (64 * SPEEDS[name]))))
    return direction, name, jitter
