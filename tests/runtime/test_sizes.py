"""Sizes: one parse and one spelling, however they are written."""

import pytest

from stages.runtime.errors import UsageError
from stages.runtime.sizes import parse_size, size_text


@pytest.mark.parametrize("text", ["1280*704", "1280x704", "1280X704", "1280 x 704", " 1280 * 704 "])
def test_parse_size_takes_any_spelling_of_width_and_height(text):
    assert parse_size(text) == (1280, 704)
    assert size_text(text) == "1280*704"


@pytest.mark.parametrize(
    "text", ["1280", "704*", "0*704", "-1*5", "1280*704*3", "a*b", "", "1e3*5", "100000*5", "16385*16", "１２*5", None, 64]
)
def test_parse_size_refuses_anything_else(text):
    with pytest.raises(UsageError, match="WIDTH|side"):
        parse_size(text)
