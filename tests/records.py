"""Fields of artifacts for tests in which their values do not matter."""

from typing import Any

from stages.runtime.kinds import KINDS

EXAMPLES = {
    "width": 64,
    "height": 64,
    "num_frames": 5,
    "fps": "8/1",
    "seed": 0,
    "select": "all",
    "tokens": {"in": 0, "out": 0},
    "source": {"fps": "8"},
    "statistics": {},
    "frames": [],
    "keys": [],
    "parts": [],
}


def fields(kind: str, **values: Any) -> dict[str, Any]:
    """The required fields of a kind of artifact with valid example values, some of which `values` replaces."""
    required = [name for name, field in KINDS[kind].fields.items() if field.required]
    return {name: EXAMPLES.get(name, "") for name in required} | values
