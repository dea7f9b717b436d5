"""Check that the stages of a run use the code that planned it, also in images and after the checkout has changed."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from importlib import metadata
from pathlib import Path

from stages.runtime.errors import JobError

EXPECTED = "KINEMAKE_CODE"  # environment variable with the digest of the code that planned the run
PACKAGE = Path(__file__).parents[1]


@cache
def code_digest() -> str:
    """SHA-256 over names and contents of all Python files of this package."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(PACKAGE).as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def check_code() -> None:
    """Raise JobError if other code than this planned the run."""
    expected = os.environ.get(EXPECTED)
    if not expected or expected == code_digest():
        return
    found = f"the code of Kinemake {metadata.version('kinemake')} here ({code_digest()[:12]})"
    if image := os.environ.get("APPTAINER_CONTAINER"):
        remedy = f"the image {Path(image).name} is of another version: build the images again with make containers"
    else:
        remedy = "leave the code alone while a run is under way, and run again; an environment is made again by its install"
    raise JobError(f"{found} is not that of the run's plan ({expected[:12]})", remedy)
