"""The recipes, found by their files.

Each names the FAMILIES of its models (alternatives in brackets) and what a clip NEEDS; it has OPTIONS of its own, DEFAULTS
that differ from a family's, and `items`.
"""

import importlib
import pkgutil

RECIPES = {module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)}
