"""What the stages of DynamiCrafter share."""

import torch

from stages.runtime.errors import ItemError


def check_finite(tensor: torch.Tensor, what: str) -> None:
    """Raise ItemError for a tensor made in float32 that is not finite all the same."""
    if not torch.isfinite(tensor).all():
        raise ItemError(
            f"{what} became NaN or infinite in float32", "look at the picture and the weights: no precision mends that"
        )
