"""Draws the example videos of this folder: a shape that glides over a plain ground, one second each."""

from pathlib import Path

import cv2
import numpy as np

from stages.media.write import VideoWriter

WIDTH, HEIGHT, FPS, FRAMES = 192, 128, 24, 24
FOLDER = Path(__file__).parent / "videos"
VIDEOS = {
    "circle": ((220, 60, 50), (235, 235, 225), (2, 0)),
    "square": ((40, 90, 210), (245, 225, 190), (0, 2)),
    "沙滩": ((250, 180, 40), (120, 190, 220), (-2, 0)),
}


def frame(number: int, color: tuple, ground: tuple, speed: tuple, shape: str) -> np.ndarray:
    """Frame `number`: RGB, uint8 [H, W, 3]."""
    picture = np.full((HEIGHT, WIDTH, 3), ground, np.uint8)
    x = WIDTH // 2 + speed[0] * (number - FRAMES // 2)
    y = HEIGHT // 2 + speed[1] * (number - FRAMES // 2)
    if shape == "square":
        cv2.rectangle(picture, (x - 24, y - 24), (x + 24, y + 24), color, -1, cv2.LINE_AA)
    else:
        cv2.circle(picture, (x, y), 26, color, -1, cv2.LINE_AA)
    return picture


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (color, ground, speed) in VIDEOS.items():
        with VideoWriter(FOLDER / f"{name}.mp4", WIDTH, HEIGHT, FPS) as video:
            for number in range(FRAMES):
                video.write(frame(number, color, ground, speed, name))
