"""Loads published weights quietly and safely, with a clear error when they are incomplete.

Every network, tokenizer and processor is loaded here, so that one place enforces the rules: no code of a folder or of the
hub runs, no pickle is opened, and no missing weight is initialised at random.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from stages.families.shared.repacked import Repacked
from stages.runtime import components, memory
from stages.runtime.components import weight_files
from stages.runtime.errors import KinemakeError
from stages.runtime.log import log
from stages.runtime.model import Model
from stages.runtime.weights import not_loadable, weights_error

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def quiet() -> None:
    """Silence the warnings and progress bars of transformers and diffusers; the item loop shows its own progress.

    To be called before a pipeline is imported, since that import warns too.
    """
    for library in ("transformers", "diffusers"):
        if find_spec(library):
            logging = import_module(f"{library}.utils.logging")
            logging.set_verbosity_error()
            logging.disable_progress_bar()


@contextmanager
def loading(model: Model) -> Iterator[None]:
    """Load quietly, and turn exceptions about invalid files into a JobError that names the folder.

    The libraries raise any exception for invalid files. Exhausted memory and GPU failures are not the fault of the files and
    pass through unchanged.
    """
    quiet()
    try:
        yield
    except components.Broken as error:
        raise not_loadable(model, error) from None
    except (KinemakeError, MemoryError, ModuleNotFoundError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):  # torch's message on a CPU
            raise
        raise weights_error(model, error) from error


def load_network(
    kind: Any,
    folder: Path,
    part: str = "",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **settings: Any,
) -> Any:
    """Load a network of class `kind`, of diffusers or transformers, from safetensors files in `part` of a model's folder.

    The tensors go straight to the device, one after the other. Large weights that are published in a wider precision than
    `dtype` are converted once, see `Repacked`. `settings` are passed to `from_pretrained`. Raises ValueError for missing
    weights, which the libraries would initialise at random, and any exception of the libraries.
    """
    place = folder / part
    components.refuse_code_of(place)
    repacked = repacked_of(kind, place, dtype)
    copy = repacked.find() if repacked else None
    settings |= {} if dtype is None else {"dtype": dtype}
    read = partial(read_network, kind, copy or place, torch.device(device), **settings)
    network = logged(part or "model", read, repacked=copy is not None)
    if repacked and not copy:
        repacked.make(network)
    return network


def logged(component: str, load: Callable[[], Any], **facts: Any) -> Any:
    """The network that `load` returns. Its name, its bytes in memory and the seconds are logged."""
    start = time.monotonic()
    network = load()
    log("load", component=component, bytes=weights_size(network), seconds=round(time.monotonic() - start, 3), **facts)
    return network


def weights_size(network: torch.nn.Module) -> int:
    """Bytes of the parameters and buffers of a network."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*network.parameters(), *network.buffers()])


def repacked_of(kind: Any, place: Path, dtype: torch.dtype | None) -> Repacked | None:
    """The copy in `dtype` of the weights in a folder, if it pays to have one."""
    if dtype is None:
        return None
    repacked = Repacked(place, weight_files(place, reader_of(kind)).paths, dtype)
    return repacked if repacked.pays else None


def reader_of(kind: Any) -> str:
    """The library of a class of networks."""
    return "diffusers" if hasattr(kind, "load_config") else "transformers"


def read_network(kind: Any, place: Path, device: torch.device, **settings: Any) -> Any:
    """Load a network from the files in a folder, see `load_network`."""
    reader = reader_of(kind)
    if variant := weight_files(place, reader).variant:
        settings["variant"] = variant
    if reader == "transformers":
        settings["trust_remote_code"] = False
    if device.type != "cpu":
        settings["device_map"] = {"": device}
    network, info = kind.from_pretrained(place, use_safetensors=True, output_loading_info=True, **settings)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"the weights in {place} lack {missing[0]}, {len(missing)} of them are missing")
    return network


def read_ahead(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> None:
    """Let the kernel read the files that `load_network` will read into its cache, if main memory has room for them."""
    place = folder / part
    paths, repacked = weight_files(place, reader_of(kind)).paths, repacked_of(kind, place, dtype)
    if repacked and (copy := repacked.find()):
        paths = tuple(copy / path.name for path in paths)
    if sum(path.stat().st_size for path in paths) < memory.main_memory():
        threading.Thread(target=advise, args=(paths,), daemon=True).start()


def advise(paths: Iterable[Path]) -> None:
    """Tell the kernel that files will be needed. The call may wait for the disk."""
    for path in paths:
        with suppress(OSError), open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def load_tokenizer(place: Path, **settings: Any) -> Any:
    """Load the tokenizer in a folder and try it on a text.

    Raises JobError for a tokenizer that needs code of its own, and any exception of transformers.
    """
    from transformers import AutoTokenizer

    components.check_tokenizer(place)
    components.refuse_code_of(place)
    tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **settings)
    tokenizer("text")  # some invalid values of its config raise only here, such as a maximum length that is no number
    return tokenizer


def load_image_processor(place: Path, **settings: Any) -> Any:
    """Load the image processor in a folder.

    Raises JobError for a processor that needs code of its own, and any exception of transformers.
    """
    from transformers import AutoImageProcessor

    components.refuse_code_of(place)
    return AutoImageProcessor.from_pretrained(place, trust_remote_code=False, **settings)
