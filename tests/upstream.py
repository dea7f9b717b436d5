"""Outputs of the published programs on tiny random weights: those in tests/golden, else those beside the checkout."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = (ROOT / "tests/golden", ROOT.parent / "shared/golden")


def golden(name: str) -> Path:
    """A file or folder of golden tensors, FAMILY/NAME; the test is skipped where it is in neither place."""
    for place in PLACES:
        if (place / name).exists():
            return place / name
    pytest.skip(f"the golden tensors {name} are not here: only the smaller ones come with the project")
