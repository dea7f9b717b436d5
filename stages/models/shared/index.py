"""What a repository in diffusers' layout says of itself. Without torch: a model's family is told by it."""

import json
from pathlib import Path
from typing import Any


def read_index(folder: Path) -> dict[str, Any]:
    """The content of model_index.json; empty where there is none that can be read."""
    try:
        return json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError):
        return {}
