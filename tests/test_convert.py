"""The command line of `convert` answers before any heavy library is imported."""

import pytest

from tests.commands import imported_libraries


@pytest.mark.parametrize("arguments", [["longlive", "--help"], ["longlive", "--base", "/no/such.pt"], ["wan", "--help"]])
def test_convert_help_and_usage_errors_import_no_heavy_library(arguments):
    assert imported_libraries("convert", arguments, ("torch", "diffusers", "transformers", "safetensors")) == []
