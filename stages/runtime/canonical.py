"""JSON with one spelling per value, and the parser that takes no other values."""

from __future__ import annotations

import json
from typing import Any


def canonical_json(value: Any) -> bytes:
    """JSON with one spelling per value, as input of digests."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def parse_json(text: str | bytes) -> Any:
    """Parse JSON in UTF-8. Raises ValueError, also for NaN, lone surrogates and too deep nesting."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        value = json.loads(text, parse_constant=refuse)
        canonical_json(value)  # raises for values that cannot enter a digest
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value
