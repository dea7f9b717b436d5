"""Shapes world as a camera would see it: light from the upper left, shade, a soft shadow, a ground with a grain.

What is drawn (`world.render`) is the rendering, what is filmed is what a translation of it is to look like. Places, colours
and outlines are the same, so the oracle reads both.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from stages.media.shapes.world import BACKGROUNDS, COLORS, DIRECTIONS, SPEEDS, Scene, render, signed_distance, wrapped

LOOKS = ("drawn", "filmed")
SHADE = 0.3  # of a shape's colour, lighter on one side and darker on the other
LIGHT, GRAIN, SHADOW = 10.0, 8.0, 20.0  # levels: over the ground from corner to middle, its grain's spread, under a shape
FALL = 0.35  # how far a shadow falls to the right and down, and how soft it is, in radii
CELLS = 12  # of the grain, across the shorter side


def film(
    scene: Scene, frames: int, width: int = 64, height: int = 64, start: int = 0, grain: int | None = None
) -> np.ndarray:
    """Frames start, start + 1, ... of a scene, RGB, uint8 [frames, height, width, 3].

    `grain` is the seed of the ground's grain, which no source tells and which stays where it is; None: an even ground.
    """
    radius = scene.radius * min(width, height)
    x, y = around(scene, frames, width, height, start)
    cover = np.clip(0.5 - signed_distance(scene.shape, x, y, radius), 0, 1)[..., None]
    fall = FALL * radius
    shadow = np.clip(0.5 - signed_distance(scene.shape, x - fall, y - fall, radius) / fall, 0, 1)[..., None]
    shade = 1 - SHADE * np.clip((x + y) / (np.sqrt(2) * radius), -1, 1)[..., None]
    ground = np.array(BACKGROUNDS[scene.background], np.float32) + lit_ground(width, height, grain)[None, :, :, None]
    made = ground - SHADOW * shadow + cover * (np.array(COLORS[scene.color], np.float32) * shade - ground + SHADOW * shadow)
    return np.clip(made + 0.5, 0, 255).astype(np.uint8)


def around(scene: Scene, frames: int, width: int, height: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels are as seen from the shape's centre, float32 [frames, 1, width] and [frames, height, 1]."""
    centers = scene.centers(frames, width, height, start).astype(np.float32)
    x = wrapped(np.arange(width, dtype=np.float32) + 0.5 - centers[:, :1], width)
    y = wrapped(np.arange(height, dtype=np.float32) + 0.5 - centers[:, 1:], height)
    return x[:, None, :], y[:, :, None]


def lit_ground(width: int, height: int, grain: int | None) -> np.ndarray:
    """What light and grain add to the ground, in levels [height, width]."""
    across, down = (np.linspace(1, -1, size, dtype=np.float32) for size in (width, height))
    light = LIGHT * (across[None, :] + down[:, None]) / 2
    if grain is None:
        return light
    shape = (max(2, round(CELLS * height / min(width, height))), max(2, round(CELLS * width / min(width, height))))
    coarse = np.random.default_rng(grain).standard_normal(shape).astype(np.float32)
    return light + GRAIN * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def nearness(clip: np.ndarray, scene: Scene, start: int = 0) -> float:
    """Where the colours of a clip, uint8 [T, H, W, 3], lie on the way from the drawn scene (0) to the filmed one (1)."""
    count, height, width, _ = clip.shape
    drawn, filmed = (make(scene, count, width, height, start).astype(np.float64) for make in (render, film))
    way = filmed - drawn
    return float(((clip - drawn) * way).sum() / (way**2).sum())


def flicker(clip: np.ndarray, scene: Scene, start: int = 0) -> float:
    """By how many levels a clip, uint8 [T, H, W, 3], changes from frame to frame where nothing changes: the mean over the
    ground, out of the reach of the shape and its shadow, and over the shape, which is followed on its way.
    """
    count, height, width, _ = clip.shape
    radius = scene.radius * min(width, height)
    distance = signed_distance(scene.shape, *around(scene, count, width, height, start), radius)
    ground, shape = distance > 3 * FALL * radius, distance < -1
    way = SPEEDS[scene.speed] * min(width, height) * np.array(DIRECTIONS[scene.direction], np.float32)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    changes = []
    for number, (before, after) in enumerate(pairwise(clip), 1):
        moved = cv2.remap(before, columns - way[0], rows - way[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        still = ground[number] & ground[number - 1]
        changes.append(np.concatenate([cv2.absdiff(before, after)[still], cv2.absdiff(moved, after)[shape[number]]]).mean())
    return float(np.mean(changes))
