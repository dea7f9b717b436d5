"""Small scenes with motion that is known by formula."""

import cv2
import numpy as np

from stages.media.flow import grid, sample


def texture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A smooth random image with full contrast, uint8 [height, width, 3]."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def panning(count: int, step=(1.5, 0.5), size=(96, 64)) -> list[np.ndarray]:
    """Frames of an image that moves by `step` (x, y) pixels a frame to the left and up."""
    whole = texture(size[0] + 60, size[1] + 60)
    positions = grid(size[::-1])
    return [sample(whole, (positions + 20 + np.float32(step) * t).astype(np.float32), cv2.INTER_CUBIC) for t in range(count)]


def layered_scene(count: int, size=(160, 96)) -> list[np.ndarray]:
    """Frames of a panning image behind a disc of another image that moves 5 pixels a frame: true disocclusion."""
    behind, front = texture(size[0] + 20, size[1] + 20, seed=1), texture(60, 60, seed=2)
    positions = grid(size[::-1])
    frames = []
    for t in range(count):
        centre = np.float32([50 + 5 * t, 48])
        inside = np.linalg.norm(positions - centre, axis=-1)[..., None] < 24
        pan = sample(behind, positions + np.float32([0.6 * t, 5]), cv2.INTER_CUBIC)
        frames.append(np.where(inside, sample(front, positions - centre + 30), pan))
    return frames


def restyle(rgb: np.ndarray) -> np.ndarray:
    """A known look of a frame, uint8 [H, W, 3]: other tones, and the channels swapped."""
    tones = np.rint(255 * (0.5 - 0.5 * np.cos(np.pi * np.arange(256) / 255))).astype(np.uint8)
    return np.ascontiguousarray(tones[rgb][..., [2, 0, 1]])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(cv2.PSNR(a, b))
