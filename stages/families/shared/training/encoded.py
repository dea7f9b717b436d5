"""Datasets that keep what frozen networks make of each clip, which they do once, on first access."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from stages.families.shared.training.data import ClipDataset, Key
from stages.runtime.errors import UsageError


class CachedDataset(ClipDataset):
    """Items that are made of those of `clips` on first access, and kept in main memory."""

    def __init__(self, clips: ClipDataset):
        self.clips = clips
        self.cache: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        if index not in self.cache:
            self.cache |= self.make(index)
        return self.cache[index]

    @abstractmethod
    def make(self, index: int) -> Mapping[int, dict[str, Any]]:
        """The item with this index, and any others that are made with it, by index."""


class EncodedDataset(CachedDataset):
    """The items of `clips`, with the outputs of `encode` instead of their `video`.

    `encode` takes videos [B, 3, T, H, W] and returns tensors by name, a row per clip. Groups of `group_size` neighbours are
    encoded in one call, which is faster. The groups are fixed, since another grouping would round differently and a resumed
    training would not be exact. An augmented clip is augmented once.
    """

    def __init__(self, clips: ClipDataset, encode: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], group_size: int):
        super().__init__(clips)
        self.encode, self.group_size = encode, group_size

    def make(self, index: int) -> Mapping[int, dict[str, Any]]:
        first = index - index % self.group_size
        items = [self.clips[i] for i in range(first, min(first + self.group_size, len(self)))]
        return dict(enumerate(self._encode_items(items), first))

    @torch.no_grad()
    def _encode_items(self, items: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        tensors = self.encode(torch.stack([item["video"] for item in items]))
        for i, item in enumerate(items):
            others = {name: value for name, value in item.items() if name != "video"}
            yield {name: tensor[i].cpu() for name, tensor in tensors.items()} | others


def vae_folder(folder: str, training: str) -> Path:
    """The repository of the VAE for a training. Raises UsageError if it has none, and names the training that makes one."""
    if not folder or not os.path.isdir(Path(folder) / "vae"):
        raise UsageError(f"{folder or 'no folder'} has no vae/", f"give --vae, a folder that train {training} wrote")
    return Path(folder)
