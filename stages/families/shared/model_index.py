"""Reads and writes the configs of a repository in diffusers' layout. Imports no torch: the plan detects families by them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.runtime import components

FILE = "model_index.json"


def read_index(folder: Path) -> dict[str, Any]:
    """Read model_index.json; empty if there is none. Raises JobError for one that needs code of its own."""
    try:
        return components.read_config(folder / FILE)
    except FileNotFoundError:
        return {}


def read_config(folder: Path) -> dict[str, Any]:
    """Read a component's config.json; empty if there is none. Raises JobError."""
    try:
        return components.read_config(folder / "config.json")
    except FileNotFoundError:
        return {}


def write_index(folder: Path, pipeline: str, parts: Mapping[str, Sequence[str | None]], **settings: Any) -> None:
    """Write model_index.json: the class of the pipeline, its settings, and the library and class of each component."""
    index = {"_class_name": pipeline, **settings, **parts}
    (folder / FILE).write_text(json.dumps(index, indent=2) + "\n")
