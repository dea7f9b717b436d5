"""The models that come with Kinemake."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def declared_models() -> dict[str, dict[str, Any]]:
    """The shipped models as config.yaml declares them, with absolute paths."""
    declared = yaml.safe_load((ROOT / "config.yaml").read_text())["models"]
    return {name: {**model, "path": str(ROOT / model["path"])} for name, model in declared.items() if "path" in model}
