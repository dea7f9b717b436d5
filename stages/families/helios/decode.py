"""Decode for Helios: each chunk by itself, as it was trained, in memory that does not grow with the film."""

from collections.abc import Generator, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from stages.families.helios.options import DecodeOptions
from stages.families.shared.film import follow_latents
from stages.families.shared.item import carry, check_lineage
from stages.families.shared.pixels import to_uint8
from stages.families.shared.wan.decode import WanDecode
from stages.families.shared.wan.vae import decode_video, denormalise
from stages.families.shared.write_clip import write_clip, write_growing
from stages.runtime.artifacts import Artifact
from stages.runtime.worker import Work


class Decode(WanDecode[DecodeOptions]):
    """Writes `clip`. Its first frame follows the source's last one and does not repeat it."""

    def run(self, work: Work[DecodeOptions]) -> None:
        latents = work.artifact("latents")
        chunks = latents.tensors()["latents"].split(latents.fields["block"], dim=2)
        fields = carry(self.model, work, latents, "seed", "part_frames", "part_prompts", repeated_frames=0)
        write_clip(work, self._frames(chunks, latents), fields)

    def follow(self, path: Path, artifact: Artifact, options: DecodeOptions, output: Path) -> None:
        check_lineage(artifact, self.model)
        chunks = in_chunks(follow_latents(path), artifact.fields["block"])
        write_growing(output, self._frames(chunks, artifact), artifact, options)

    def _frames(self, chunks: Iterable[torch.Tensor], latents: Artifact) -> Generator[np.ndarray, None, None]:
        """The frames, uint8 [H, W, 3], of chunks [1, C, F, h, w], without those behind the end of the clip."""
        every = (frame for chunk in chunks for frame in decode_video(self.vae, denormalise(self.vae, chunk.to(self.device))))
        yield from map(to_uint8, islice(every, latents.fields["num_frames"]))


def in_chunks(latents: Iterable[torch.Tensor], block: int) -> Iterable[torch.Tensor]:
    """Join each `block` latents [1, C, 1, h, w]."""
    rest = iter(latents)
    while chunk := list(islice(rest, block)):
        yield torch.cat(chunk, dim=2)
