"""Outputs of the published programs on tiny random weights: those in tests/golden, else those beside the checkout."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = (ROOT / "tests/golden", ROOT.parent / "shared/golden")


def golden(name: str) -> Path:
    """The folder of a family's golden tensors; the test is skipped where there is none."""
    for place in PLACES:
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"the golden tensors of {name} are not here")
