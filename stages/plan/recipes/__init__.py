"""The recipes: every module of this package is one.

A recipe has FAMILIES (by role, the families whose models it can use), NEEDS (the keys that a clip must have), its own
OPTIONS, DEFAULTS that override those of the families, FUSE (whether one job does several steps of a shard, unless the run
says otherwise), and the function `items`.
"""

import importlib
import pkgutil

from stages.plan.families import ALL_FAMILIES
from stages.runtime.options import Option

RECIPES = {module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)}


def options_of_recipe(recipe: str) -> dict[str, tuple[Option, ...]]:
    """The options of a run of a recipe, by family; its own under "recipe"."""
    module = RECIPES[recipe]
    families = dict.fromkeys(family for able in module.FAMILIES.values() for family in able)
    owners = {"recipe": module.OPTIONS.declared, **{name: ALL_FAMILIES[name].options for name in (*families, "media")}}
    return {name: tuple(one for one in options if not one.set_by_recipe) for name, options in owners.items()}


def option_names(recipe: str) -> set[str]:
    """The names and aliases of the options of a recipe's runs."""
    options = [option for declared in options_of_recipe(recipe).values() for option in declared]
    return {"prompt", *(name for option in options for name in (option.name, *option.aliases))}
