"""The documents are those of the code."""

from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", generate.files())
def test_generated_files_are_those_of_the_code(path):
    assert (ROOT / path).read_text(encoding="utf-8") == generate.files()[path], "run `make generated`"
