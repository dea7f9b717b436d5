"""Code shared by the stages of `text2video`."""

from __future__ import annotations

from typing import Any

from stages.families.shared.model_index import read_config
from stages.runtime.errors import JobError
from stages.runtime.model import Model


def unet_config(model: Model) -> dict[str, Any]:
    """Read the config of the U-Net. Raises JobError if there is none."""
    if not (config := read_config(model.folder() / "unet")):
        raise JobError(f"model {model.name} in {model.folder()} has no unet/config.json", "give a model of train text2video")
    return config
