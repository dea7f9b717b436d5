"""Where torch runs."""

from __future__ import annotations

import os

from stages.runtime.errors import JobError
from stages.runtime.lease import lease
from stages.runtime.log import log


def take_device(device: str, threads: int | None, gpus: int = 1) -> str:
    """Settle the device, "cpu", "cuda" or "cuda:1", and the CPU threads, before torch is imported for the first time.

    "auto" leases free GPUs, as many as are wanted, or takes the CPU where there is none; "cuda" is the first of them. Raises
    JobError where that cannot be had.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    leased = lease(gpus) if device == "auto" else []
    if leased:
        log("lease", devices=leased)
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        if torch.cuda.is_available() and not leased:
            raise JobError(
                "torch sees a GPU that cannot be leased", "put nvidia-smi on the path, or name it: --device cuda:0"
            )
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise JobError(f"device {device} is asked for and torch sees no GPU", "use --device cpu or auto")
    return device
