"""Hard edges of an image: the control map of a ControlNet for canny."""

import cv2
import numpy as np

THRESHOLDS = (50, 100)  # lower and upper, of the gradient


def canny(rgb: np.ndarray) -> np.ndarray:
    """Hard edges of an RGB image, uint8 [H, W, 3]: uint8 [H, W], 255 on an edge and 0 elsewhere (Canny, 1986)."""
    return cv2.Canny(rgb, *THRESHOLDS)
