"""The scenes of shapes world: what is in them, how they move, how they look, and what their caption says.

A shape glides straight at a constant speed and bounces off the walls of the picture, so it stays in sight however long a
chain of clips goes on. A caption tells the direction at one moment: that of a whole clip its last one, from which the next
clip goes on. Lengths are shares of the picture's shorter side, so a scene can be drawn at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
SPEEDS = {"slowly": 0.75 / 64, "quickly": 1.5 / 64}  # of the shorter side, per frame
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
RADII = (7.5 / 64, 10.5 / 64)
GAP = 2 / 64  # between a shape and the wall that it bounces off
HELD_OUT = (("green", "triangle"), ("purple", "ring"), ("orange", "square"))  # never trained on, scored beside
RING_HOLE = 0.5  # of the radius

WORDS = ("a", "an", "moving", "on", "background", *COLORS, *BACKGROUNDS, *SHAPES, *DIRECTIONS, *SPEEDS)


@dataclass(frozen=True)
class Scene:
    """A shape and its motion. `direction` is that of frame 0.

    `along` and `across` place it between the walls at frame 0, 0 to 1 from left to right or from top to bottom: on the
    axis on which it moves, and on the other one.
    """

    color: str
    shape: str
    direction: str
    speed: str
    background: str
    radius: float
    along: float
    across: float

    def caption(self, frame: int = 0, width: int = 64, height: int = 64) -> str:
        """What the scene shows, with the direction at a frame."""
        article = "an" if self.color[0] in "aeiou" else "a"
        direction = self.direction_at(frame, width, height)
        return f"{article} {self.color} {self.shape} moving {direction} {self.speed} on a {self.background} background"

    def direction_at(self, frame: int, width: int = 64, height: int = 64) -> str:
        """Where the shape is going between this frame and the next."""
        turns = math.floor(self._way(frame, width, height) % 2)
        forward = turns == 0
        positive = "right" if self.direction in ("left", "right") else "down"
        return positive if forward else OPPOSITE[positive]

    def centers(self, frames: int, width: int = 64, height: int = 64, start: int = 0) -> np.ndarray:
        """The shape's centre at frames start, start + 1, ..., float64 [frames, 2]: x and y in pixels."""
        side = min(width, height)
        margin = (self.radius + GAP) * side
        way = self._way(np.arange(start, start + frames), width, height) % 2
        along = np.where(way < 1, way, 2 - way)
        horizontal = self.direction in ("left", "right")
        x, y = (along, self.across) if horizontal else (self.across, along)
        ends = np.array([width, height]) - 2 * margin
        return margin + np.stack(np.broadcast_arrays(x, y), axis=-1) * ends

    def _way(self, frame, width: int, height: int):
        """The way gone at a frame, in lengths of the free path between the walls; odd lengths lead back."""
        dx, dy = DIRECTIONS[self.direction]
        side = min(width, height)
        path = (width if dx else height) - 2 * (self.radius + GAP) * side
        origin = self.along if dx + dy > 0 else 2 - self.along
        return origin + frame * SPEEDS[self.speed] * side / path


def sample(rng: np.random.Generator, straight: int = 0, held_out: bool = False) -> Scene:
    """A scene at random; with `straight`, one that meets no wall for that many frames, where the picture has the room.

    `held_out` takes one of the combinations of colour and shape that no training sees; else they are left out.
    """
    pick = lambda names: names[rng.integers(len(names))]  # noqa: E731
    while True:
        color, shape = pick(HELD_OUT) if held_out else (pick([*COLORS]), pick(SHAPES))
        if held_out or (color, shape) not in HELD_OUT:
            break
    direction, speed, background = pick([*DIRECTIONS]), pick([*SPEEDS]), pick([*BACKGROUNDS])
    radius, along, across = rng.uniform(*RADII), rng.uniform(), rng.uniform()
    if straight:
        free = max(0.0, 1 - (straight - 1) * SPEEDS[speed] / (1 - 2 * (radius + GAP)))
        along = along * free if sum(DIRECTIONS[direction]) > 0 else 1 - along * free
    return Scene(color, shape, direction, speed, background, radius, along, across)


def render(scene: Scene, frames: int, width: int = 64, height: int = 64, start: int = 0) -> np.ndarray:
    """Frames start, start + 1, ... of a scene, RGB, uint8 [frames, height, width, 3], with smooth edges."""
    centers = scene.centers(frames, width, height, start).astype(np.float32)
    x = np.arange(width, dtype=np.float32) + 0.5 - centers[:, :1]  # [frames, width]
    y = np.arange(height, dtype=np.float32) + 0.5 - centers[:, 1:]
    distance = signed_distance(scene.shape, x[:, None, :], y[:, :, None], scene.radius * min(width, height))
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    color, ground = (np.array(rgb, np.float32) for rgb in (COLORS[scene.color], BACKGROUNDS[scene.background]))
    return (ground + cover * (color - ground) + 0.5).astype(np.uint8)


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Distance in pixels to a shape's outline around the origin, negative inside."""
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.9 * radius
    if shape == "ring":
        middle, half = (1 + RING_HOLE) / 2 * radius, (1 - RING_HOLE) / 2 * radius
        return abs(np.hypot(x, y) - middle) - half
    slope = math.sqrt(3) / 2  # a triangle that stands on its side, centre of its circumcircle at the origin
    return np.maximum(slope * abs(x) - 0.5 * y, y) - 0.5 * 1.15 * radius
