"""Target sizes for a source, and fitting of an image to a size."""

from fractions import Fraction
from math import isqrt, sqrt

import numpy as np
from PIL import Image

from stages.media.options import FITS
from stages.runtime.errors import UsageError
from stages.runtime.sizes import nearest

FREE = ("area", "short")  # fits whose result has about the source's aspect ratio


def target_size(
    source_size: tuple[int, int], size: tuple[int, int], fit: str, multiple: int = 1, area_rule: str = "joint"
) -> tuple[int, int]:
    """The (width, height) in pixels of the result for a source of `source_size` (width, height).

    - `crop` and `pad` return `size` itself.
    - `area` reads `size` as an area and keeps the source's aspect ratio: both sides are multiples of `multiple`, and their
      product is at most the area. The rule `joint` (Wan2.2's 5B, wan/utils/utils.py) floors one side and gives the other the
      rest of the area; of the two orders it takes the one nearer to the source's aspect ratio. The rule `independent` (its
      14B, wan/image2video.py) floors each side by itself.
    - `short` scales the shorter side of the source to that of `size`, and rounds both to the nearest multiples.

    Raises UsageError for a size that is no multiple, an area too small for one multiple, and an unknown fit.
    """
    _check_fit(fit)
    if fit == "short":
        scale = min(size) / min(source_size)
        width, height = (max(1, round(side * scale / multiple)) * multiple for side in source_size)
        return width, height
    if fit != "area":
        if size[0] % multiple or size[1] % multiple:
            remedy = f"use {nearest(size, multiple)}, or fit area"
            raise UsageError(f"size {size[0]}*{size[1]} is not a multiple of {multiple}", remedy)
        return size[0], size[1]

    width, height = source_size
    area = size[0] * size[1]
    if area < multiple * multiple:
        raise UsageError(f"an area of {size[0]}*{size[1]} holds no {multiple}*{multiple} pixels", "give a larger size")
    aspect = height / width
    exact = sqrt(area / aspect), sqrt(area * aspect)  # in floats, as Wan2.2 computes them: the rounding is part of the rule
    if area_rule == "independent" and min(exact) >= multiple:
        return int(exact[0] // multiple) * multiple, int(exact[1] // multiple) * multiple

    def pair(across: int, along: int) -> tuple[int, int]:
        """The sides of the area in the ratio across : along; the first is floored before the second."""
        side = max(multiple, isqrt(area * across // along) // multiple * multiple)
        side = min(side, area // multiple // multiple * multiple)
        return side, area // side // multiple * multiple

    by_width = pair(width, height)
    by_height = pair(height, width)[::-1]

    def distance(result: tuple[int, int]) -> Fraction:
        ratio = Fraction(*result) / Fraction(width, height)
        return max(ratio, 1 / ratio)

    return by_width if distance(by_width) < distance(by_height) else by_height


def fit_image(rgb: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Fit an image, uint8 [H, W, 3], to exactly `size` (width, height): uint8 [height, width, 3].

    `pad` scales it to fit inside `size` and adds black bars. The other fits scale it to cover `size` and crop its centre.
    The filter is PIL's Lanczos. An image of that size is returned unchanged. Raises UsageError for an unknown fit.
    """
    _check_fit(fit)
    height, width = rgb.shape[:2]
    if (width, height) == tuple(size):
        return rgb
    ratios = size[0] / width, size[1] / height
    scale = min(ratios) if fit == "pad" else max(ratios)
    scaled = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(rgb).resize(scaled, Image.Resampling.LANCZOS)
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    # PIL's crop fills the area outside the image with black, which is the padding.
    return np.asarray(image.crop((left, top, left + size[0], top + size[1])))


def _check_fit(fit: str) -> None:
    if fit not in FITS:
        raise UsageError(f"unknown fit {fit!r}", f"use one of {', '.join(FITS)}")
