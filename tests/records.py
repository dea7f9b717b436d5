"""Descriptions of artifacts for tests that do not care what they say."""

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


def fields(kind: str, **own: Any) -> dict[str, Any]:
    """The fields that an artifact of the kind must have, with values that it may have, some `own` among them."""
    required = [name for name, field in KINDS[kind].fields.items() if field.required]
    return {name: EXAMPLES.get(name, "") for name in required} | own
