"""The state of an unfinished item, bound to the item: a damaged state, or that of another item, is not taken up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.artifacts import canonical
from stages.runtime.log import log

if TYPE_CHECKING:
    import torch


def state_digest(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the item's key, which is the name of its state's file, the `facts` and the tensors of the state."""
    import torch

    sha = hashlib.sha256(canonical([path.stem, facts, {name: str(tensors[name].dtype) for name in sorted(tensors)}]))
    for name in sorted(tensors):
        sha.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def refuse_state(path: Path) -> None:
    """Say that a state cannot be taken up, and remove it."""
    reason = f"{path} is damaged, or the state of another item"
    log("warning", reason=reason, remedy="the item is done from its beginning")
    with suppress(OSError):  # of another user
        path.unlink(missing_ok=True)
