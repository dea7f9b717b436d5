"""Compiles the blocks of a transformer by torch.compile, one by one (regional compilation).

The blocks are alike, so one of them is compiled for all. A size of the clips, or a precision, has a graph of its own. What
the compilers make lies in KINEMAKE_CACHE/inductor, where every process finds it; the folder may be deleted at any time.
"""

import os
import shutil

import torch
from diffusers import ModelMixin

from stages.runtime.errors import JobError
from stages.runtime.model import cache_folder

SIZES = 64  # graphs of a process, after which torch refuses another one
BACKEND = "inductor"


def compile_blocks(transformer: ModelMixin) -> None:
    """Let the blocks of a transformer be compiled when they first compute with a size."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder().absolute() / "inductor"))  # and Triton's
    torch._dynamo.config.recompile_limit = SIZES
    transformer.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=BACKEND)


def check_compiler(device: str) -> None:
    """Raise JobError without the compiler that torch.compile needs: for C++ on a CPU, for C on a GPU."""
    variable, usual = ("CXX", ("g++", "clang++")) if device == "cpu" else ("CC", ("gcc", "clang"))
    named = os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else usual)):
        raise JobError(
            f"compile blocks needs a compiler, and there is no {named or ' or '.join(usual)} here",
            "install one, or set compile to none",
        )
