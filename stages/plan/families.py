"""All families of a plan, those of models and of media stages, and the roles of models in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from stages.families import FAMILIES
from stages.media.options import FAMILY as MEDIA
from stages.runtime.options import Family

ALL_FAMILIES = {**FAMILIES, MEDIA.name: MEDIA}


class Role(NamedTuple):
    """The role of a model in a run: the stage that it does."""

    stage: str
    help: str
    optional: bool = False


ROLES = {  # by the key of a run that names the model
    "model": Role("generate", "Name of the model that generates, as declared under models."),
    "captioner": Role(
        "caption_vlm",
        "Name of the model that captions, as declared under models; not needed if all clips have prompts.",
        optional=True,
    ),
}


def families_for(role: str, able: Callable[[Family], Any] = lambda family: True) -> tuple[str, ...]:
    """The names of the families whose models can take a role and satisfy the recipe's condition `able`."""
    return tuple(name for name, family in FAMILIES.items() if ROLES[role].stage in family.stages and able(family))
