"""What a repository in diffusers' layout says of itself. Without torch: a model's family is told by it."""

from pathlib import Path
from typing import Any

from stages.runtime.components import read_config


def read_index(folder: Path) -> dict[str, Any]:
    """The content of model_index.json; empty where there is none. Raises JobError for one that asks for code."""
    try:
        return read_config(folder / "model_index.json")
    except FileNotFoundError:
        return {}
