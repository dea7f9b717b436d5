"""Loading published weights: quietly, offline, and with a clear word when they are not whole."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from stages.runtime.errors import JobError
from stages.runtime.model import Model
from stages.runtime.weights import not_whole

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def quiet() -> None:
    """Only errors of transformers and diffusers, and no progress bars of theirs: the item loop shows its own.

    To be called before a pipeline is imported, since that import complains too.
    """
    for library in ("transformers", "diffusers"):
        if find_spec(library):
            logging = import_module(f"{library}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()


@contextmanager
def loading(model: Model) -> Iterator[None]:
    """Load quietly, and turn complaints about missing or torn files into a JobError that names the folder."""
    quiet()
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise not_whole(model, error) from error


def read_config(folder: Path) -> dict[str, Any]:
    """A component's config.json; empty where the component is not there."""
    try:
        return json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise JobError(f"{folder / 'config.json'} is not JSON ({error})", "fetch the model again") from None
