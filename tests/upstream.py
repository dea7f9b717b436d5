"""Outputs of the published programs on tiny random weights, in tests/golden or in the folder shared beside the checkout."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "tests/golden", ROOT.parent / "shared/golden")


def golden(name: str) -> Path:
    """A file or folder of golden tensors, FAMILY/NAME. Skips the test if neither folder has it."""
    for folder in FOLDERS:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"the golden tensors {name} are not here: only the smaller ones come with the project")
