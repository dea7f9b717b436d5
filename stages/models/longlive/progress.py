"""The latents of a film in the making: for a killed job to go on from, and for decode to follow."""

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
    """Keeps an item's latents in the store while they are made: an artifact that lacks its last frames."""

    def __init__(self, work: Work, fields: Mapping[str, Any]):
        self.path, self.trail, self.fields = work.partial, trail(Path(work.item.output)), fields

    def found(self) -> torch.Tensor | None:
        """What an interrupted run left, [1, C, T, h, w]; a file that is damaged, or another item's, is removed."""
        if not self.path.exists():
            return None
        try:
            state = read(self.path, ("latents",))
            tensors = state.tensors()
            if state.fields.get("digest") == state_digest(self.path, {}, tensors):
                return tensors["latents"]
        except ItemError:
            pass
        refuse_state(self.path)
        return None

    def keep(self, latents: torch.Tensor) -> None:
        """Put the latents so far in the place of those before, and lay a trail to them beside the item's output."""
        digest = state_digest(self.path, {}, {"latents": latents})
        with replacing(self.path) as temporary:
            write_tensors(temporary, "latents", {**self.fields, "digest": digest}, {"latents": latents})
        with replacing(self.trail) as link:
            link.symlink_to(self.path.absolute())

    def end(self) -> None:
        """The film is whole: no trail leads to a part of it any more."""
        self.trail.unlink(missing_ok=True)


def frames_as_they_come(path: Path) -> Iterator[torch.Tensor]:
    """The latents [1, C, 1, h, w] of a film, each once it is kept, to the last. Raises ItemError where the film fails."""
    seen = 0
    while True:
        artifact = latest(path)
        if artifact:
            latents = artifact.tensors()["latents"]
            for frame in range(seen, latents.shape[2]):
                yield latents[:, :, frame : frame + 1]
            seen = max(seen, latents.shape[2])
            if artifact.path == path:
                return
        time.sleep(POLL)
