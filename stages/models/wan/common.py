"""What the three Wan stages share: the facts they pass on, and the checks of a repository and of an input's origin."""

import json
from pathlib import Path
from typing import Any

from stages.models.wan.options import detect
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError, JobError
from stages.runtime.model import Model
from stages.runtime.worker import Work


def model_fields(model: Model, work: Work) -> dict[str, str]:
    """The fields by which every artifact tells who made it."""
    return {"model": model.name, "family": "wan", "variant": model.variant, "weights": work.weights}


def check_origin(artifact: Artifact, model: Model) -> None:
    """Raise ItemError for an artifact of another family or variant than the model's."""
    origin = f"{artifact.fields['family']} {artifact.fields['variant']}"
    if origin != f"wan {model.variant}":
        raise ItemError(
            f"{artifact.path} was made for {origin} and model {model.name} is wan {model.variant}",
            "use the same model in encode, generate and decode",
        )


def check_repository(model: Model) -> None:
    """Raise JobError where the repository is of another variant than declared, or wants image embeddings (Wan2.1)."""
    folder = model.folder()
    if (found := detect(folder)) != model.variant:
        raise JobError(
            f"model {model.name} is declared as variant {model.variant} and {folder} holds {found or 'no Wan2.2'}",
            "correct the variant or the folder",
        )
    if (width := read_config(folder / "transformer").get("image_dim")) is not None:
        raise JobError(
            f"the transformer in {folder} takes CLIP image embeddings (image_dim is {width})",
            "use a Wan2.2 repository: I2V-A14B or TI2V-5B in diffusers format",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """A component's config.json; empty where the component is not there."""
    try:
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise JobError(f"{folder / 'config.json'} is not JSON ({error})", "fetch the model again") from None
