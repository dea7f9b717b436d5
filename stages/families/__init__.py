"""The families, found by their folders: `stages/families/<family>/options.py` declares a FAMILY."""

import importlib
from pathlib import Path

FAMILIES = {
    path.parent.name: importlib.import_module(f"{__name__}.{path.parent.name}.options").FAMILY
    for path in sorted(Path(__file__).parent.glob("*/options.py"))
}
