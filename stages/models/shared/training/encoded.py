"""Clips as a denoiser is trained on them: each looked at once, at its first use, by networks that stay as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from stages.runtime.errors import UsageError

Item = Mapping[str, Any]


class Encoded(Dataset):
    """The items of `clips` with what `encode` makes of them in the place of their `video`; so of an augmented clip there is
    one variation.

    `encode` takes videos [B, 3, T, H, W] and gives tensors by name, a row per clip. `together` neighbours are encoded at
    once, which is faster: always the same ones, or rounding would make a resumed training another one.
    """

    def __init__(self, clips: Sequence, encode: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], together: int):
        self.clips, self.encode, self.together, self.known = clips, encode, together, {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        if index not in self.known:
            first = index - index % self.together
            items = [self.clips[i] for i in range(first, min(first + self.together, len(self)))]
            self.known |= dict(enumerate(self._encoded(items), first))
        return self.known[index]

    @torch.no_grad()
    def _encoded(self, items: list[Item]) -> Iterable[dict[str, Any]]:
        found = self.encode(torch.stack([item["video"] for item in items]))
        for i, item in enumerate(items):
            told = {name: value for name, value in item.items() if name != "video"}
            yield {name: tensor[i].cpu() for name, tensor in found.items()} | told


def vae_folder(options: Mapping[str, Any], training: str) -> Path:
    """The repository whose VAE a denoiser is trained on: that of `vae`, else of `start_from`. `training` makes such a VAE.

    Raises UsageError where there is none.
    """
    folder = options["vae"] or options["start_from"]
    if not folder or not os.path.isdir(Path(folder) / "vae"):
        raise UsageError(f"{folder or 'no folder'} has no vae/", f"give --vae, a folder that train {training} wrote")
    return Path(folder)
