"""Loading published weights: quietly, without any code of theirs, and with a clear word when they are not whole.

Every network, tokenizer and processor comes through here, so that what is never to be done is said in one place: no code of
a folder or of the hub is run, no pickle is opened, no weight that is missing is drawn at random.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from stages.runtime import components
from stages.runtime.components import weight_files
from stages.runtime.errors import KinemakeError
from stages.runtime.model import Model
from stages.runtime.weights import not_loadable, not_whole

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
    """Load quietly, and turn complaints about files that do not make a model into a JobError that names the folder.

    The libraries answer such files with any exception there is. Memory that ran out and a GPU that failed are not the files'
    fault, and are passed on.
    """
    quiet()
    try:
        yield
    except components.Broken as error:
        raise not_loadable(model, error) from None
    except (KinemakeError, MemoryError, ModuleNotFoundError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):  # torch's word on a CPU
            raise
        raise not_whole(model, error) from error


def load_network(kind: Any, folder: Path, part: str = "", **settings: Any) -> Any:
    """A network of a class of diffusers or transformers from `part` of a model's folder, by its safetensors files alone.

    `settings` go to the class's `from_pretrained`. Raises ValueError for weights that are missing, which the libraries would
    draw at random, and whatever the libraries raise.
    """
    place = folder / part
    components.refuse_code_of(place)
    reader = "diffusers" if hasattr(kind, "load_config") else "transformers"
    if variant := weight_files(place, reader).variant:
        settings["variant"] = variant
    if reader == "transformers":
        settings["trust_remote_code"] = False
    network, told = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True, **settings)
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"the weights in {place} lack {missing[0]}, {len(missing)} of them are missing")
    return network


def load_tokenizer(place: Path, **settings: Any) -> Any:
    """The tokenizer in a folder, tried on a text. Raises JobError for one that asks for code, and whatever transformers
    raises."""
    from transformers import AutoTokenizer

    components.check_tokenizer(place)
    components.refuse_code_of(place)
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **settings)
    tokenizer("text")  # some values of its config are only met here, such as a longest length that is no number
    return tokenizer


def load_image_processor(place: Path, **settings: Any) -> Any:
    """The image processor in a folder. Raises JobError for one that asks for code, and whatever transformers raises."""
    from transformers import AutoImageProcessor

    components.refuse_code_of(place)
    return AutoImageProcessor.from_pretrained(place, trust_remote_code=False, **settings)


def read_config(folder: Path) -> dict[str, Any]:
    """A component's config.json; empty where the component is not there. Raises JobError."""
    try:
        return components.read_config(folder / "config.json")
    except FileNotFoundError:
        return {}
