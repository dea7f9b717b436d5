"""Sizes of images, width before height, as users write them."""

import re
from typing import Any

from stages.runtime.errors import UsageError, shown

MAX_SIDE = 16384  # pixels, of an H.264 video


def parse_size(text: Any) -> tuple[int, int]:
    """`"1280*704"`, `"1280x704"` or `"1280 X 704"` to (1280, 704). Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*[*xX]\s*([0-9]{1,9})\s*", text) if isinstance(text, str) else None
    if not match:
        raise UsageError(f"size {shown(text)} is not WIDTH*HEIGHT", 'write it like "1280*704"')
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError(f"size {shown(text)} has a side that is not 1 to {MAX_SIDE} pixels", 'write it like "1280*704"')
    return width, height


def size_text(text: Any) -> str:
    """A size in the one spelling in which sizes are kept and compared: `"1280*704"`. Raises UsageError."""
    return "*".join(map(str, parse_size(text)))
