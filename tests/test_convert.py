"""The tool answers before the heavy libraries are there."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["longlive", "--help"], ["longlive", "--base", "/no/such.pt"], ["wan", "--help"]])
def test_help_and_usage_errors_import_nothing_heavy(arguments):
    code = f"""
import sys
from stages.convert import main
try:
    main({arguments!r})
except SystemExit as left:
    assert left.code in (0, 2), left.code
print("HEAVY", [name for name in ("torch", "diffusers", "transformers", "safetensors") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["HEAVY []"], done.stderr
