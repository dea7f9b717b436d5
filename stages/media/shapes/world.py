"""The scenes of shapes world: their contents, motion, rendering and captions.

A shape moves in a straight line at a constant speed. The borders wrap around: what leaves a frame on one side enters on the
other. A shape therefore stays visible in a chain of any length, and its caption is true of every clip. Lengths are shares of
the shorter side, so that a scene can be rendered at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

COLORS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 215, 40),
    "purple": (160, 50, 200),
    "orange": (245, 135, 30),
}
BACKGROUNDS = {"black": (12, 12, 12), "gray": (118, 118, 118), "white": (242, 242, 242)}
SHAPES = ("square", "ring", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 1 / 64, "quickly": 2 / 64}  # of the shorter side, per frame
RADII = (7.5 / 64, 10.5 / 64)
HELD_OUT = (("green", "triangle"), ("purple", "ring"), ("orange", "square"))  # excluded from training, scored separately
RING_HOLE = 0.5  # of the radius

WORDS = ("a", "an", "moving", "on", "background", *COLORS, *BACKGROUNDS, *SHAPES, *DIRECTIONS, *SPEEDS)


@dataclass(frozen=True)
class Scene:
    """A shape and its motion. `x` and `y` place its centre at frame 0, 0 to 1 from left to right and from top to bottom."""

    color: str
    shape: str
    direction: str
    speed: str
    background: str
    radius: float
    x: float
    y: float

    def caption(self) -> str:
        """The caption, such as "a red square moving left slowly on a black background"."""
        article = "an" if self.color[0] in "aeiou" else "a"
        look = f"{article} {self.color} {self.shape}"
        return f"{look} moving {self.direction} {self.speed} on a {self.background} background"

    def centers(self, frames: int, width: int = 64, height: int = 64, start: int = 0) -> np.ndarray:
        """The shape's centre at frames start, start + 1, ..., float64 [frames, 2]: x and y in pixels, within the frame."""
        distance = np.arange(start, start + frames)[:, None] * (SPEEDS[self.speed] * min(width, height))
        size = np.array([width, height])
        return (np.array([self.x, self.y]) * size + distance * DIRECTIONS[self.direction]) % size


def sample(rng: np.random.Generator, held_out: bool = False, inside: int = 0) -> Scene:
    """A random scene.

    `held_out` selects one of the combinations of colour and shape that are excluded from training; otherwise they are
    excluded here. With `inside`, the border of a square frame does not cut the shape in the first `inside` frames, if there
    is room for its motion.
    """
    pick = lambda names: names[rng.integers(len(names))]  # noqa: E731
    while True:
        color, shape = pick(HELD_OUT) if held_out else (pick([*COLORS]), pick(SHAPES))
        if held_out or (color, shape) not in HELD_OUT:
            break
    direction, speed, background = pick([*DIRECTIONS]), pick([*SPEEDS]), pick([*BACKGROUNDS])
    radius, place = rng.uniform(*RADII), rng.uniform(size=2)
    if inside:
        motion = (inside - 1) * SPEEDS[speed] * np.array(DIRECTIONS[direction])
        low, high = radius - np.minimum(motion, 0), 1 - radius - np.maximum(motion, 0)
        place = low + place * np.maximum(high - low, 0)
    return Scene(color, shape, direction, speed, background, radius, *place.tolist())


def render(scene: Scene, frames: int, width: int = 64, height: int = 64, start: int = 0) -> np.ndarray:
    """Frames start, start + 1, ... of a scene, RGB, uint8 [frames, height, width, 3], with smooth edges."""
    centers = scene.centers(frames, width, height, start).astype(np.float32)
    x = wrap(np.arange(width, dtype=np.float32) + 0.5 - centers[:, :1], width)  # [frames, width]
    y = wrap(np.arange(height, dtype=np.float32) + 0.5 - centers[:, 1:], height)
    distance = signed_distance(scene.shape, x[:, None, :], y[:, :, None], scene.radius * min(width, height))
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    color, background = (np.array(rgb, np.float32) for rgb in (COLORS[scene.color], BACKGROUNDS[scene.background]))
    return (background + cover * (color - background) + 0.5).astype(np.uint8)


def turn(scene: Scene, direction: str, frame: int, width: int = 64, height: int = 64) -> Scene:
    """The scene that continues in another direction from the place at `frame`, which becomes frame 0."""
    x, y = scene.centers(1, width, height, start=frame)[0] / (width, height)
    return replace(scene, direction=direction, x=float(x), y=float(y))


def wrap(offset: np.ndarray, size: float | np.ndarray) -> np.ndarray:
    """The shortest offset to the same place where borders wrap around after `size`: -size / 2 to size / 2."""
    return (offset + size / 2) % size - size / 2


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to a shape's outline around the origin, negative inside."""
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.9 * radius
    if shape == "ring":
        middle, half = (1 + RING_HOLE) / 2 * radius, (1 - RING_HOLE) / 2 * radius
        return abs(np.hypot(x, y) - middle) - half
    slope = math.sqrt(3) / 2  # an equilateral triangle with a horizontal side, the centre of its circumcircle at the origin
    return np.maximum(slope * abs(x) - 0.5 * y, y) - 0.5 * 1.15 * radius
