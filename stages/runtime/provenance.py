"""What made an item: enough to make it again."""

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

from stages.runtime.model import Model, cached_file_digest

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "av",
    "imageio-ffmpeg",  # its version tells that of the ffmpeg program in it
    "numpy",
    "pillow",
    "opencv-python-headless",
)


def record(*, model: Model | None, **facts: Any) -> dict[str, Any]:
    """The provenance record of one item: `facts` of the item, and those of the program and the machine."""
    return {
        **facts,
        "model": model and {"name": model.name, "source": model.path or model.hub, "revision": model.revision},
        "peak_memory_bytes": peak_memory(),
        "program": dict(program()),
    }


def peak_memory() -> dict[str, int]:
    """Highest memory so far, in bytes: of this process, of the largest of its children, on the GPU where there is one."""
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
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # each stage's image holds only what the stage needs
    return {
        "kinemake": metadata.version("kinemake"),
        "commit": commit(),
        "python": platform.python_version(),
        "libraries": versions,
        "container": container(),
    }


def commit() -> str:
    """The commit of a source checkout, with "+" when files were changed since; empty elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def container() -> dict[str, str]:
    """Name and SHA-256 of the image that this runs in, as far as it can be seen from inside."""
    image = os.environ.get("APPTAINER_CONTAINER", "")
    return {"image": Path(image).name, "sha256": cached_file_digest(Path(image)) if Path(image).is_file() else ""}
