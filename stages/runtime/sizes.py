"""Image sizes as users write them, width before height."""

import re
from collections.abc import Sequence
from typing import Any

from stages.runtime.errors import UsageError, shown

MAX_SIDE = 16384  # pixels, of an H.264 video


def parse_size(text: Any) -> tuple[int, int]:
    """Parse `"1280*704"`, `"1280x704"` or `"1280 X 704"` to (1280, 704). Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*[*xX]\s*([0-9]{1,9})\s*", text) if isinstance(text, str) else None
    if not match:
        raise UsageError(f"size {shown(text)} is not WIDTH*HEIGHT", 'write it like "1280*704"')
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError(f"size {shown(text)} has a side that is not 1 to {MAX_SIDE} pixels", 'write it like "1280*704"')
    return width, height


def size_text(text: Any) -> str:
    """A size in its normalised spelling `"1280*704"`, in which sizes are stored and compared. Raises UsageError."""
    return "*".join(map(str, parse_size(text)))


def check_size(text: str, allowed: Sequence[str]) -> None:
    """Raise UsageError for a normalised size that is not among those `allowed`."""
    if text not in allowed:
        raise UsageError(f"size {text} is not one of this model's", f"choose {', '.join(allowed)} (width*height)")


def nearest(size: tuple[int, int], multiple: int) -> str:
    """The nearest size whose sides are multiples, as normalised text."""
    return "*".join(str(max(1, round(side / multiple)) * multiple) for side in size)


def not_multiple(size: tuple[int, int], multiple: int) -> tuple[str, str] | None:
    """(reason, remedy) for a size whose sides are not multiples, else None."""
    if not any(side % multiple for side in size):
        return None
    reason = f"size is {size[0]}*{size[1]} and both sides have to be multiples of {multiple}"
    return reason, f"take {nearest(size, multiple)}"
