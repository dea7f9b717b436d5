"""What a size means for a source, and a picture made to fit it."""

from fractions import Fraction
from math import isqrt, sqrt

import numpy as np
from PIL import Image

from stages.runtime.errors import UsageError

FREE = ("area", "short")  # the result has about the source's aspect
FITS = ("crop", "pad", *FREE)


def target_size(source_size, size, fit: str, multiple: int = 1, area_rule: str = "joint") -> tuple[int, int]:
    """(width, height) in pixels of the result for a source of `source_size` (width, height).

    `crop` and `pad` give `size` itself. `area` takes `size` as an area and keeps the source's aspect: both sides are
    multiples of `multiple` and their product is at most the area. By the rule `joint` (of Wan2.2's 5B, wan/utils/utils.py)
    one side is floored first and the other takes what is left of the area; of the two ways, the one that comes nearer the
    source's aspect. By `independent` (of its 14B, wan/image2video.py) each side is floored on its own.
    `short` makes the shorter side of the source that of `size`, and both the nearest multiples.
    Raises UsageError: a size that is no multiple, an unknown fit.
    """
    _check_fit(fit)
    if fit == "short":
        scale = min(size) / min(source_size)
        return tuple(max(1, round(side * scale / multiple)) * multiple for side in source_size)
    if fit != "area":
        if size[0] % multiple or size[1] % multiple:
            nearest = "*".join(str(max(multiple, round(side / multiple) * multiple)) for side in size)
            raise UsageError(f"size {size[0]}*{size[1]} is not a multiple of {multiple}", f"take {nearest}, or fit area")
        return tuple(size)

    width, height = source_size
    area = size[0] * size[1]
    if area < multiple * multiple:
        raise UsageError(f"an area of {size[0]}*{size[1]} holds no {multiple}*{multiple} pixels", "give a larger size")
    aspect = height / width
    exact = sqrt(area / aspect), sqrt(area * aspect)  # as the program computes them: their rounding is part of its rule
    if area_rule == "independent" and min(exact) >= multiple:
        return tuple(int(side // multiple) * multiple for side in exact)

    def pair(across: int, along: int) -> tuple[int, int]:
        """Sides of the area in the proportion across : along, `across` floored first."""
        side = max(multiple, isqrt(area * across // along) // multiple * multiple)
        side = min(side, area // multiple // multiple * multiple)
        return side, area // side // multiple * multiple

    by_width = pair(width, height)
    by_height = pair(height, width)[::-1]

    def distance(result) -> Fraction:
        ratio = Fraction(*result) / Fraction(width, height)
        return max(ratio, 1 / ratio)

    return by_width if distance(by_width) < distance(by_height) else by_height


def fit_image(rgb: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Fit a picture, uint8 [H, W, 3], to exactly `size` (width, height): uint8 [height, width, 3].

    `pad` scales it to lie inside, on black; the others (of which `area` and `short` have the source's aspect already) scale
    it to cover, and keep the centre. Lanczos in PIL. A picture of that size comes back untouched.
    """
    _check_fit(fit)
    height, width = rgb.shape[:2]
    if (width, height) == tuple(size):
        return rgb
    ratios = size[0] / width, size[1] / height
    scale = min(ratios) if fit == "pad" else max(ratios)
    scaled = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(rgb).resize(scaled, Image.Resampling.LANCZOS)
    left, top = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    # PIL fills what lies outside the picture with black, which is the padding.
    return np.asarray(picture.crop((left, top, left + size[0], top + size[1])))


def _check_fit(fit: str):
    if fit not in FITS:
        raise UsageError(f"unknown fit {fit!r}", f"take one of {', '.join(FITS)}")
