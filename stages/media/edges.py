"""Hard edges of a picture, as a ControlNet may be shown them."""

import cv2
import numpy as np

THRESHOLDS = (50, 100)  # of the gradient


def canny(rgb: np.ndarray) -> np.ndarray:
    """Hard edges of a picture, uint8 [H, W, 3]: 255 on an edge, else 0, uint8 [H, W] (Canny, 1986)."""
    return cv2.Canny(rgb, *THRESHOLDS)
