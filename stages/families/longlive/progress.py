"""The latents of an unfinished film in the store: a killed job resumes from them, and decode can follow them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from stages.runtime.artifacts import read, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.files import replacing
from stages.runtime.follow import POLL, latest, trail
from stages.runtime.partial import refuse_state, state_digest
from stages.runtime.worker import Work


class Progress:
    """Saves the latents of an item while it runs, in a folder of artifacts: each holds the frames after those before it.

    So what is written grows with the film, and no frame is written twice.
    """

    def __init__(self, work: Work, fields: Mapping[str, Any]):
        self.folder, self.trail, self.fields = work.partial, trail(Path(work.item.output)), fields

    def load(self) -> torch.Tensor | None:
        """The latents [1, C, T, h, w] that an interrupted run saved; None if there are none.

        Files that are damaged, or that belong to another item, are removed, all of them.
        """
        if not self.folder.exists():
            return None
        try:
            return torch.cat(list(self._parts()), dim=2)
        except (ItemError, ValueError):
            refuse_state(self.folder)
            return None

    def _parts(self) -> Iterator[torch.Tensor]:
        """The saved latents, file by file. Raises ItemError for a damaged file, ValueError for one of another item."""
        start = 0
        while not start or part_path(self.folder, start).exists():
            part = read(part_path(self.folder, start), ("latents",))
            tensors = part.tensors()
            if part.fields.get("digest") != state_digest(self.folder, {"start": start}, tensors):
                raise ValueError(part.path)
            yield tensors["latents"]
            start += tensors["latents"].shape[2]

    def save(self, start: int, latents: torch.Tensor) -> None:
        """Save latents [1, C, T, h, w], the first of which is frame `start`, and those before which are saved.

        A link to the first file lies beside the item's output, where `follow_latents` looks.
        """
        digest = state_digest(self.folder, {"start": start}, {"latents": latents})
        with replacing(part_path(self.folder, start)) as temporary:
            write_tensors(temporary, "latents", {**self.fields, "digest": digest}, {"latents": latents})
        with replacing(self.trail) as link:
            link.symlink_to(part_path(self.folder, 0).absolute())

    def finish(self) -> None:
        """Remove the link, once the film is complete."""
        self.trail.unlink(missing_ok=True)


def part_path(folder: Path, start: int) -> Path:
    """Path of the saved latents from frame `start` on."""
    return folder / f"{start:06d}.safetensors"


def follow_latents(path: Path) -> Iterator[torch.Tensor]:
    """Yield the latents [1, C, 1, h, w] of a film as they are saved, up to the last. Raises ItemError if the film fails."""
    seen = 0
    while (artifact := latest(path)) is None or artifact.path != path:
        part = artifact and part_path(artifact.path.resolve().parent, seen)
        if part and part.is_file():
            latents = read(part, ("latents",)).tensors()["latents"]
            yield from latents.split(1, dim=2)
            seen += latents.shape[2]
        else:
            time.sleep(POLL)
    yield from artifact.tensors()["latents"][:, :, seen:].split(1, dim=2)
