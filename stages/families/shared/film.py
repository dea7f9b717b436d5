"""The latents of a film that is made block by block: a killed job resumes from them, and decode can follow them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from stages.runtime.artifacts import read, write_tensors
from stages.runtime.errors import ItemError
from stages.runtime.files import replacing
from stages.runtime.follow import POLL, latest, trail
from stages.runtime.partial import digest_tensors, refuse_state, state_digest
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


class FilmLatents:
    """The clean latents of a film so far: those of the source, then finished blocks, some of them of an earlier run.

    `finished` are blocks [1, C, T, h, w] that need not be made again, counted from the start of the film.
    """

    def __init__(
        self,
        source: torch.Tensor,
        frames: int,
        block: int,
        progress: Progress,
        every: int,
        finished: Sequence[torch.Tensor] = (),
    ):
        self.progress, self.every, self.block_size = progress, every, block
        batch, channels, self.source_frames, height, width = source.shape
        self.shape = (batch, channels, block, height, width)
        self.latents = torch.empty(batch, channels, frames, height, width)
        self.done = 0  # number of finished frames, with the source
        loaded = progress.load()
        self._append(source if loaded is None else loaded)
        self.saved = 0 if loaded is None else self.done  # number of frames that an interrupted run would find
        for start, frames_of_block in zip(range(0, frames, block), finished):
            if start >= self.done:
                self._append(frames_of_block)

    def block(self, start: int) -> torch.Tensor | None:
        """The block [1, C, F, h, w] that begins at a frame; None if it is not finished."""
        return self.latents[:, :, start : start + self.block_size] if start < self.done else None

    def add(self, block: torch.Tensor) -> None:
        """Append a finished block, and save what is new after every `every` blocks."""
        self._append(block)
        generated = (self.done - self.source_frames) // self.block_size
        if self.every and generated % self.every == 0 and self.done < self.latents.shape[2]:
            self.progress.save(self.saved, self.latents[:, :, self.saved : self.done])
            self.saved = self.done

    def _append(self, frames: torch.Tensor) -> None:
        end = self.done + frames.shape[2]
        self.latents[:, :, self.done : end] = frames
        self.done = end


def chain_keys(first: str, facts: Iterable[Any]) -> list[str]:
    """A key per block: SHA-256 of the block's facts and of the key before it, the first of which is `first`."""
    keys = []
    for fact in facts:
        first = digest_tensors({}, first, fact)
        keys.append(first)
    return keys


def seal_blocks(keys: Sequence[str], latents: torch.Tensor) -> list[str]:
    """A digest per block of a film [1, C, T, h, w], of the block's key and its values."""
    blocks = latents.chunk(len(keys), dim=2)
    return [digest_tensors({"block": block}, key) for key, block in zip(keys, blocks, strict=True)]


def unchanged_blocks(path: Path | None, keys: Sequence[str], block: int) -> list[torch.Tensor]:
    """The first blocks [1, C, F, h, w] of the film at `path`, as far as they were made with these keys.

    Empty where there is no film, or one without `seals` (those of `seal_blocks`).
    """
    try:
        film = read(path, ("latents",)) if path else None
    except ItemError:
        return []
    if film is None or film.failure:
        return []
    blocks = film.tensors()["latents"].split(block, dim=2)
    known = zip(keys, film.fields.get("seals", ()), blocks)
    return [one for _, _, one in takewhile(lambda part: digest_tensors({"block": part[2]}, part[0]) == part[1], known)]


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
