"""Copies of published weights in the precision in which they are used, so that they are converted once and not by every job.

A copy lies in KINEMAKE_CACHE/weights/DIGEST/COMPONENT-DTYPE, where DIGEST is the digest of the published files. They stay
the identity of the weights. A copy loads as the published files do, bit for bit: it has the same files with the same
tensors, but those that the library converts are stored converted. Copies may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open

from stages.runtime.canonical import canonical_json
from stages.runtime.components import Broken, header, read_object
from stages.runtime.errors import format_bytes, one_line
from stages.runtime.files import remove, set_default_permissions
from stages.runtime.hub import SPARE
from stages.runtime.kinds import ITEM_BYTES
from stages.runtime.locks import open_lock, try_lock
from stages.runtime.log import log
from stages.runtime.model import SETTINGS, cache_folder, weights_digests
from stages.runtime.places import free_bytes
from stages.runtime.safetensors_header import read_header, write_header

SMALLEST = 2**28  # bytes of published weights; smaller ones are converted in a moment
RECORD = "files.json"  # in a copy: the size of each file of weights; it is written last
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in FLOATS.items()}


class Repacked:
    """The copy in a precision of the published weights in a folder, whether it exists or not.

    Args:
        place: folder of the component.
        paths: its published files of weights.
        dtype: precision in which they are used.
    """

    def __init__(self, place: Path, paths: Sequence[Path], dtype: torch.dtype):
        self.place, self.paths, self.dtype = place, paths, dtype
        self.configs = sorted(path for path in place.glob("*.json") if path.name != SETTINGS)

    @property
    def pays(self) -> bool:
        """Whether most of the published bytes are of a wider precision than the one in use, and are worth a copy."""
        specs = [spec for path in self.paths for spec in header(path).values()]
        sizes = [math.prod(spec["shape"]) * ITEM_BYTES[spec["dtype"]] for spec in specs]
        wide = sum(size for spec, size in zip(specs, sizes) if self._is_wider(spec["dtype"]))
        return sum(sizes) >= SMALLEST and 2 * wide > sum(sizes)

    def _is_wider(self, name: str) -> bool:
        return name in FLOATS and FLOATS[name].itemsize > self.dtype.itemsize

    @cached_property
    def folder(self) -> Path:
        """The folder of the copy. Its name has the digest of the published files, which are hashed if they were not yet."""
        files = [*self.configs, *self.paths]
        listing = [[path.name, digest] for path, digest in zip(files, weights_digests(files))]
        digest = hashlib.sha256(canonical_json(listing)).hexdigest()
        name = f"{self.place.name}-{str(self.dtype).removeprefix('torch.')}"
        return cache_folder() / "weights" / digest / name

    def find(self) -> Path | None:
        """The folder of the copy if it is whole: every file has its size and the header of a safetensors file."""
        try:
            sizes = read_object(self.folder / RECORD)
            found = {path.name: (self.folder / path.name).stat().st_size for path in self.paths}
            for name in found:
                header(self.folder / name)
        except (OSError, Broken):
            return None
        return self.folder if found == sizes else None

    def make(self, network: torch.nn.Module) -> None:
        """Make the copy, after `network` was loaded from the published files: it shows what the library converts.

        A copy is a convenience. If it cannot be made, that is logged in one line. If another process makes it, nothing is
        done.
        """
        state = network.state_dict().items()
        kept = {name for name, tensor in state if tensor.is_floating_point() and tensor.dtype != self.dtype}
        published = {name for path in self.paths for name in header(path)}
        if not kept <= published:
            return  # the library renames tensors, so it is not known which ones stay as they are
        try:
            folder = self.folder
            folder.parent.mkdir(parents=True, exist_ok=True)
            size, free = sum(path.stat().st_size for path in self.paths), free_bytes(folder.parent)
            if free < size + SPARE:
                raise OSError(f"it takes up to {format_bytes(size)} and {format_bytes(free)} are free")
            lock = open_lock(folder.with_name(f".{folder.name}.lock"))
            try:
                if try_lock(lock) and self.find() is None:
                    self._write(folder, kept)
            finally:
                os.close(lock)
        except Exception as error:  # any fault: of the disk, of permissions, of a library
            reason = f"{self.place} is not kept in {self.dtype} ({one_line(error)})"
            log(
                "warning", reason=reason, remedy="the weights are converted at every load; KINEMAKE_CACHE names another disk"
            )

    def _write(self, folder: Path, kept: Collection[str]) -> None:
        """Write the copy under a temporary name, then rename it. The lock is held."""
        temporary = folder.with_name(f".{folder.name}")
        remove(temporary)
        temporary.mkdir()
        try:
            for path in self.configs:
                shutil.copyfile(path, temporary / path.name)
            for path in self.paths:
                convert_file(path, temporary / path.name, self.dtype, kept)
            sizes = {path.name: (temporary / path.name).stat().st_size for path in self.paths}
            (temporary / RECORD).write_text(json.dumps(sizes))
            set_default_permissions(temporary)
            remove(folder)
            temporary.rename(folder)
        finally:
            remove(temporary)


def convert_file(source: Path, target: Path, dtype: torch.dtype, kept: Collection[str]) -> None:
    """Write a safetensors file again, its floating point tensors in `dtype`; those in `kept` stay as they are.

    One tensor at a time is in memory.
    """
    specs, _ = read_header(source)
    metadata = {"__metadata__": specs.pop("__metadata__")} if "__metadata__" in specs else {}
    written, end = {}, 0
    for name, spec in sorted(specs.items(), key=lambda item: item[1]["data_offsets"]):
        kind = spec["dtype"] if name in kept or spec["dtype"] not in FLOATS else NAMES[dtype]
        size = math.prod(spec["shape"]) * ITEM_BYTES[kind]
        written[name] = {"dtype": kind, "shape": spec["shape"], "data_offsets": [end, end + size]}
        end += size
    with safe_open(source, "pt") as reader, open(target, "wb") as file:
        write_header(file, {**metadata, **written})
        for name, spec in written.items():
            tensor = reader.get_tensor(name)
            if spec["dtype"] in FLOATS:
                tensor = tensor.to(FLOATS[spec["dtype"]])
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
