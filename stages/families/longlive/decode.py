"""Decode for LongLive: turns latents into a film frame by frame, in memory that does not grow with its length."""

from itertools import islice
from pathlib import Path

import torch

from stages.families.longlive.options import DecodeOptions
from stages.families.shared.film import follow_latents
from stages.families.shared.item import carry, check_lineage
from stages.families.shared.pixels import to_uint8
from stages.families.shared.wan.decode import WanDecode
from stages.families.shared.wan.vae import decode_stream, decode_video, denormalise
from stages.families.shared.write_clip import write_clip, write_growing
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work


class Decode(WanDecode[DecodeOptions]):
    """Writes `clip`. Frames of the source are decoded even if `new_only` drops them: the later frames depend on them."""

    def check(self, work: Work[DecodeOptions]) -> None:
        super().check(work)
        latents = work.artifact("latents")
        if work.options.new_only and not latents.fields["source_frames"]:
            raise ItemError(f"new_only is on and {latents.path} has no source", "leave out new_only")

    def run(self, work: Work[DecodeOptions]) -> None:
        latents = work.artifact("latents")
        skipped = latents.fields["source_frames"] if work.options.new_only else 0
        z = self._denormalise(latents.tensors()["latents"])
        fields = carry(self.model, work, latents, "seed", num_frames=latents.fields["num_frames"] - skipped)
        for name in ("part_frames", "part_prompts"):
            if parts := latents.fields.get(name):  # absent in latents of earlier versions
                fields[name] = parts[1:] if skipped else parts
        frames = (to_uint8(frame) for frame in islice(decode_video(self.vae, z), skipped, None))
        write_clip(work, frames, fields, has_source=shows_source(latents, work.options))

    def follow(self, path: Path, artifact: Artifact, options: DecodeOptions, output: Path) -> None:
        check_lineage(artifact, self.model)
        if options.vae_tiling:
            raise ItemError("vae_tiling decodes a film in one piece", "leave out vae_tiling or --follow")
        z = map(self._denormalise, follow_latents(path))
        frames = map(to_uint8, decode_stream(self.vae, z))
        skipped = artifact.fields["source_frames"] if options.new_only else 0
        write_growing(output, islice(frames, skipped, None), artifact, options, shows_source(artifact, options))

    def _denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        return denormalise(self.vae, latents.to(self.device))


def shows_source(latents: Artifact, options: DecodeOptions) -> bool:
    """Whether the film begins with frames of a source."""
    return bool(latents.fields["source_frames"]) and not options.new_only
