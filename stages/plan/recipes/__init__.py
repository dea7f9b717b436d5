"""The recipes, found by their files: each has OPTIONS of its own, DEFAULTS that differ from a family's, and `items`."""

import importlib
import pkgutil

RECIPES = {module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)}
