"""The provenance of an item: everything that is needed to reproduce it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from stages.runtime.checkout import CHECKOUT
from stages.runtime.model import cached_file_digest

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "av",
    "imageio-ffmpeg",  # its version implies that of the bundled ffmpeg
    "numpy",
    "pillow",
    "opencv-python-headless",
)


def record(**facts: Any) -> dict[str, Any]:
    """The provenance record of an item: its `facts`, peak memory, and the program's versions."""
    return {
        **facts,
        "peak_memory_bytes": peak_memory(),
        "program": dict(program()),
    }


def peak_memory() -> dict[str, int]:
    """Peak memory so far, in bytes: of this process, of its largest child, and of the GPU if there is one."""
    peak = {
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated()
    return peak


@cache
def program() -> dict[str, Any]:
    """Versions of Kinemake, Python and the libraries, with commit and container image. The first call is cached."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # the image of a stage holds only what the stage needs
    return {
        "kinemake": metadata.version("kinemake"),
        "commit": commit(),
        "python": platform.python_version(),
        "libraries": versions,
        "container": container(),
    }


def commit() -> str:
    """Commit of a source checkout, with "+" if files have changed since; "" without a checkout."""
    if not (CHECKOUT / ".git").exists():
        return ""
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def container() -> dict[str, str]:
    """Name and SHA-256 of the image that this process runs in, as far as they are visible inside it."""
    image = os.environ.get("APPTAINER_CONTAINER", "")
    return {"image": Path(image).name, "sha256": cached_file_digest(Path(image)) if Path(image).is_file() else ""}
