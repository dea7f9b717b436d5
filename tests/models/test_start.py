"""A stage answers before the heavy libraries are there."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "safetensors", "cv2", "av")


@pytest.mark.parametrize("name", ["extract_frames", "caption_vlm", "encode", "generate", "propagate", "decode", "concat"])
@pytest.mark.parametrize("arguments", [["--help"], ["--no-such-option"]])
def test_help_and_usage_errors_import_nothing_heavy(name, arguments):
    code = f"""
import sys
from stages.{name} import main
try:
    main({arguments!r})
except SystemExit as left:
    assert left.code in (0, 2), left.code
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["HEAVY []"], done.stderr
