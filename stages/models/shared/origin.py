"""Who made an artifact, and whether that is the model at hand."""

from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError
from stages.runtime.model import Model
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
