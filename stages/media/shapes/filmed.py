"""Shapes world in the filmed look: light from the upper left, shading, a soft shadow, a grainy background.

`world.render` draws the source of a translation, `film` its target. Places, colours and outlines are the same in both, so
the oracle reads both.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from stages.media.shapes.world import BACKGROUNDS, COLORS, DIRECTIONS, SPEEDS, Scene, render, signed_distance, wrap

LOOKS = ("drawn", "filmed")
SHADE = 0.3  # share by which a shape's colour is lighter on one side and darker on the other
LIGHT, GRAIN, SHADOW = 10.0, 8.0, 20.0  # levels: light from the middle to a corner, standard deviation of the grain, shadow
FALL = 0.35  # offset of the shadow to the right and down, and its softness, in radii
CELLS = 12  # of the grain along the shorter side


def film(
    scene: Scene, frames: int, width: int = 64, height: int = 64, start: int = 0, grain: int | None = None
) -> np.ndarray:
    """Frames start, start + 1, ... of a scene, RGB, uint8 [frames, height, width, 3].

    `grain` is the seed of the background's grain, which does not move; None: no grain.
    """
    radius = scene.radius * min(width, height)
    x, y = relative_places(scene, frames, width, height, start)
    cover = np.clip(0.5 - signed_distance(scene.shape, x, y, radius), 0, 1)[..., None]
    fall = FALL * radius
    shadow = np.clip(0.5 - signed_distance(scene.shape, x - fall, y - fall, radius) / fall, 0, 1)[..., None]
    shade = 1 - SHADE * np.clip((x + y) / (np.sqrt(2) * radius), -1, 1)[..., None]
    background = (
        np.array(BACKGROUNDS[scene.background], np.float32) + light_and_grain(width, height, grain)[None, :, :, None]
    )
    color = np.array(COLORS[scene.color], np.float32)
    rgb = background - SHADOW * shadow + cover * (color * shade - background + SHADOW * shadow)
    return np.clip(rgb + 0.5, 0, 255).astype(np.uint8)


def relative_places(scene: Scene, frames: int, width: int, height: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels relative to the shape's centre, float32 [frames, 1, width] and [frames, height, 1]."""
    centers = scene.centers(frames, width, height, start).astype(np.float32)
    x = wrap(np.arange(width, dtype=np.float32) + 0.5 - centers[:, :1], width)
    y = wrap(np.arange(height, dtype=np.float32) + 0.5 - centers[:, 1:], height)
    return x[:, None, :], y[:, :, None]


def light_and_grain(width: int, height: int, grain: int | None) -> np.ndarray:
    """Levels that light and grain add to the background, float32 [height, width]."""
    x, y = (np.linspace(1, -1, size, dtype=np.float32) for size in (width, height))
    light = LIGHT * (x[None, :] + y[:, None]) / 2
    if grain is None:
        return light
    shape = (max(2, round(CELLS * height / min(width, height))), max(2, round(CELLS * width / min(width, height))))
    coarse = np.random.default_rng(grain).standard_normal(shape).astype(np.float32)
    return light + GRAIN * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def nearness(clip: np.ndarray, scene: Scene, start: int = 0) -> float:
    """Position of a clip, uint8 [T, H, W, 3], on the line from the drawn scene (0) to the filmed one (1)."""
    count, height, width, _ = clip.shape
    drawn, filmed = (draw(scene, count, width, height, start).astype(np.float64) for draw in (render, film))
    line = filmed - drawn
    return float(((clip - drawn) * line).sum() / (line**2).sum())


def flicker(clip: np.ndarray, scene: Scene, start: int = 0) -> float:
    """Mean change of a clip, uint8 [T, H, W, 3], from frame to frame where the scene does not change, in levels.

    It is taken over the background, away from the shape and its shadow, and over the shape, along its motion.
    """
    count, height, width, _ = clip.shape
    radius = scene.radius * min(width, height)
    distance = signed_distance(scene.shape, *relative_places(scene, count, width, height, start), radius)
    background, shape = distance > 3 * FALL * radius, distance < -1
    velocity = SPEEDS[scene.speed] * min(width, height) * np.array(DIRECTIONS[scene.direction], np.float32)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    changes = []
    for number, (before, after) in enumerate(pairwise(clip), 1):
        moved = cv2.remap(before, columns - velocity[0], rows - velocity[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        still = background[number] & background[number - 1]
        changes.append(np.concatenate([cv2.absdiff(before, after)[still], cv2.absdiff(moved, after)[shape[number]]]).mean())
    return float(np.mean(changes))
