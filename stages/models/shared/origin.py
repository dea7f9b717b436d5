"""Who made an artifact, whether that is the model at hand, and whether the model can make what is asked for."""

from collections.abc import Mapping
from typing import Any

from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError
from stages.runtime.model import Model
from stages.runtime.options import Family
from stages.runtime.worker import Work


def model_fields(model: Model, work: Work) -> dict[str, str]:
    """The fields by which every artifact tells who made it."""
    return {"model": model.name, "family": model.family, "variant": model.variant, "weights": work.weights}


def check_origin(artifact: Artifact, model: Model) -> None:
    """Raise ItemError for an artifact of another family or variant than the model's."""
    origin = f"{artifact.fields['family']} {artifact.fields['variant']}".strip()
    if origin != (own := f"{model.family} {model.variant}".strip()):
        raise ItemError(
            f"{artifact.path} was made for {origin} and model {model.name} is {own}",
            "use the same model in encode, generate and decode",
        )


def check_beyond(family: Family, model: Model, values: Mapping[str, Any]) -> None:
    """Raise ItemError for options of encode that the configs in the model's folder rule out."""
    if fault := family.beyond(model.folder(), values):
        raise ItemError(f"{fault[0]} (model {model.name})", fault[1])
