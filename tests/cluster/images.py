"""Images of all stages, built from Debian's packages."""

import os
import shutil
import subprocess
import sys

from tests.workflow.conftest import ROOT

IMAGES = ROOT / "containers"


def obstacle() -> str:
    """The reason why no images can be built here, or ''."""
    for program in ("apptainer", "mmdebstrap"):
        if not shutil.which(program):
            return f"{program} is not installed"
    return "only root can make a base of Debian's packages" if os.geteuid() else ""


def build(*stages: str) -> str:
    """Build the missing images and return the output of the build."""
    command = [sys.executable, "-m", "containers.build", "--base", "debian", *stages]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout
