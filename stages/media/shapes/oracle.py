"""What a clip of shapes world shows, read back from its pixels by classical vision: no network, no knowledge of how the
clip was made.

The ground is the most common tone; the shape is what differs from it, the picture turned round until the shape is in its
middle; its colour is the nearest of the palette, its outline the best of the known ones in the same box; its motion is a
straight line, on a round world, through the centres of its boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from stages.media.shapes.world import BACKGROUNDS, COLORS, SHAPES, SPEEDS, signed_distance

CONTRAST = 35  # levels: less is no shape
AREA = (40, 640)  # pixels of a shape in a picture of 64 x 64
COLOR_DISTANCE = 70  # in RGB
OVERLAP = 0.6  # intersection over union with the best outline
STILL = 0.3  # pixels per frame in a picture of 64 x 64: slower is no motion
JITTER = 1.5  # pixels of 64, root mean square: more is no steady motion
PRESENT = 0.6  # share of the frames that must show a shape


@dataclass(frozen=True)
class Reading:
    """What the oracle saw; None for what it could not tell.

    `centers` float [T, 2] in pixels (x, y), NaN where no shape was seen. `present` is the share of frames with a shape,
    `jitter` the root mean square distance from steady motion in pixels of a 64-pixel picture, `junk` the share of what
    differs from the ground beside the shape.
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
    """Look at a clip, RGB, uint8 [T, H, W, 3]."""
    video = np.asarray(video, np.float32)
    count, height, width, _ = video.shape
    size, unit = np.array([width, height]), min(height, width) / 64
    ground = most_common(video)
    background = min(BACKGROUNDS, key=lambda name: np.linalg.norm(ground - BACKGROUNDS[name]))
    centers = np.full((count, 2), np.nan)
    junk, tones, overlaps = np.zeros(count), [], []
    for t, frame in enumerate(video):
        difference = abs(frame - ground).max(axis=-1)
        turned = to_middle(difference)
        frame, difference = (np.roll(picture, turned[::-1], axis=(0, 1)) for picture in (frame, difference))
        mask, junk[t] = find_shape(difference, unit)
        if mask is None:
            continue
        centers[t] = (np.array(box_center(mask)) - turned) % size
        core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        tones.append(frame[core if core.sum() >= 4 else mask].mean(axis=0))
        overlaps.append([overlap(name, mask) for name in SHAPES])
    seen = ~np.isnan(centers[:, 0])
    facts = {"background": background, "centers": centers, "present": float(seen.mean()), "junk": float(junk.mean())}
    if seen.sum() < max(3, PRESENT * count):
        return Reading(None, None, None, None, jitter=np.nan, **facts)
    tone, fit = np.median(tones, axis=0), np.mean(overlaps, axis=0)
    color = min(COLORS, key=lambda name: np.linalg.norm(tone - COLORS[name]))
    direction, speed, jitter = motion(np.flatnonzero(seen), centers[seen] / unit, size / unit)
    return Reading(
        color if np.linalg.norm(tone - COLORS[color]) < COLOR_DISTANCE else None,
        SHAPES[int(fit.argmax())] if fit.max() > OVERLAP else None,
        direction,
        speed,
        jitter=jitter,
        **facts,
    )


def most_common(video: np.ndarray) -> np.ndarray:
    """The tone of the ground: the median of all pixels, of which a shape takes the smaller part."""
    return np.median(video[::4].reshape(-1, 3), axis=0)


def to_middle(difference: np.ndarray) -> np.ndarray:
    """By how many pixels (x, y) to turn a round picture until what differs from the ground [H, W] is in its middle.

    Where things are on a round world is the direction of their mean on a circle.
    """
    height, width = difference.shape
    weight = np.maximum(difference - CONTRAST, 0)
    turned = []
    for axis, size in ((0, width), (1, height)):
        circle = np.exp(2j * np.pi * (np.arange(size) + 0.5) / size)
        place = np.angle((weight.sum(axis=axis) * circle).sum()) * size / (2 * np.pi)
        turned.append(round(size / 2 - place))
    return np.array(turned)


def find_shape(difference: np.ndarray, unit: float) -> tuple[np.ndarray | None, float]:
    """The mask of the largest thing that stands out, None where nothing of a shape's size does; and the share of junk."""
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
    else:  # from its box, 2 * side / 2 wide and high by half the root of 3, to its centre of gravity
        radius, y = half / 0.931, y + half * 0.31
    template = signed_distance(shape, grid_x - x, grid_y - y, radius) < 0
    return float((template & mask).sum() / max(1, (template | mask).sum()))


def motion(times: np.ndarray, centers: np.ndarray, size: np.ndarray) -> tuple[str | None, str | None, float]:
    """Direction, speed and jitter of centres [N, 2] at `times` on a round world, in pixels of a 64-pixel picture.

    Between two sights a shape took the shortest way.
    """
    way = np.stack([np.unwrap(centers[:, axis], period=size[axis]) for axis in (0, 1)], axis=1)
    design = np.stack([times, np.ones_like(times)], axis=1).astype(float)
    solution, *_ = np.linalg.lstsq(design, way, rcond=None)
    velocity, jitter = solution[0], float(np.sqrt(((way - design @ solution) ** 2).sum() / len(times)))
    axis = int(abs(velocity).argmax())
    speed, drift = abs(velocity[axis]), abs(velocity[1 - axis])
    if speed < STILL or drift > 0.5 * speed or jitter > JITTER:
        return None, None, jitter
    direction = (("left", "right"), ("up", "down"))[axis][int(velocity[axis] > 0)]
    name = min(SPEEDS, key=lambda name: abs(np.log(speed / (64 * SPEEDS[name]))))
    return direction, name, jitter
