"""A stage answers before any heavy library is imported."""

import pytest

from stages.runtime.stages import STAGES
from tests.commands import imported_libraries

HEAVY = ("torch", "diffusers", "transformers", "safetensors", "cv2", "av")


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("arguments", [["--help"], ["--no-such-option"]])
def test_stage_help_and_usage_errors_import_no_heavy_library(name, arguments):
    assert imported_libraries(name, arguments, HEAVY) == []
