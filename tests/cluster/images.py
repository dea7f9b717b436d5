"""Images of all stages, built here of Debian's packages."""

import os
import shutil
import subprocess
import sys

from tests.workflow.conftest import ROOT

IMAGES = ROOT / "containers"


def obstacle() -> str:
    """Why no images can be built here; empty where they can."""
    for program in ("apptainer", "mmdebstrap"):
        if not shutil.which(program):
            return f"{program} is not installed"
    return "only root can make a base of Debian's packages" if os.geteuid() else ""


def build(*stages: str) -> str:
    """Build what is not there yet, and return what is said of it."""
    command = [sys.executable, "-m", "containers.build", "--base", "debian", *stages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
