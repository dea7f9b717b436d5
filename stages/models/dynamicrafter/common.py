"""What the stages of DynamiCrafter share."""

import torch

from stages.models.dynamicrafter.options import detect
from stages.runtime.errors import ItemError, JobError
from stages.runtime.model import Model


def check_repository(model: Model) -> None:
    """Raise JobError where the repository is of another variant than declared."""
    if (found := detect(model.folder())) != model.variant:
        raise JobError(
            f"model {model.name} is declared as variant {model.variant} and {model.folder()} holds "
            f"{found or 'no DynamiCrafter'}",
            "correct the variant or the folder",
        )


def check_finite(tensor: torch.Tensor, what: str) -> None:
    """Raise ItemError for a tensor made in float32 that is not finite all the same."""
    if not torch.isfinite(tensor).all():
        raise ItemError(
            f"{what} became NaN or infinite in float32", "look at the picture and the weights: no precision mends that"
        )
