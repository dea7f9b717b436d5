"""The families, found by their folders: `stages/models/<family>/options.py` declares a FAMILY."""

import importlib
import pkgutil

FAMILIES = {
    module.name: importlib.import_module(f"{__name__}.{module.name}.options").FAMILY
    for module in pkgutil.iter_modules(__path__)
    if module.ispkg and module.name != "shared"
}
