"""Save the state of an unfinished item, bound to that item. A damaged state, or that of another item, is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.runtime.canonical import canonical_json
from stages.runtime.errors import ItemError
from stages.runtime.files import open_plain, remove, replacing
from stages.runtime.log import log

if TYPE_CHECKING:
    import torch


class StateMissing(ItemError):
    """The state that an earlier phase left is gone: another job has finished the item meanwhile, or it was removed."""

    def __init__(self, path: Path, what: str):
        super().__init__(f"{path}, {what}, is missing", "run again")


def save_state(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a state atomically: to a temporary name, which then takes the place of `path`."""
    from safetensors.torch import save_file

    metadata = {"state": json.dumps(facts), "digest": state_digest(path, facts, tensors)}
    with replacing(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """The facts and the tensors, in main memory, of a saved state; None if there is none.

    A state that is damaged, or that belongs to another item, is removed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_plain(path), safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(metadata["state"])
        if metadata["digest"] == state_digest(path, facts, tensors):
            return facts, tensors
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    refuse_state(path)
    return None


def state_digest(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the item's key (the name of its state in the store), the `facts` and the tensors of the state."""
    return digest_tensors(tensors, path.stem, facts)


def digest_tensors(tensors: Mapping[str, torch.Tensor], *facts: Any) -> str:
    """SHA-256 over `facts`, of JSON, and over the names, dtypes and values of tensors."""
    import torch

    sha = hashlib.sha256(canonical_json([*facts, {name: str(tensors[name].dtype) for name in sorted(tensors)}]))
    for name in sorted(tensors):
        sha.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def refuse_state(path: Path) -> None:
    """Log that a state cannot be resumed, and remove it."""
    reason = f"{path} is damaged, or the state of another item"
    log("warning", reason=reason, remedy="the item starts again from the beginning")
    with suppress(OSError):  # the file of another user
        remove(path)
