"""Decode for LongLive: latents become a film, frame after frame; memory does not grow with its length."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from stages.media.write import VideoWriter
from stages.models.longlive.progress import frames_as_they_come
from stages.models.shared.clip import write_clip
from stages.models.shared.origin import check_origin, model_fields
from stages.models.shared.wan.vae import decoded, denormalised, load_vae, pixels, streamed
from stages.runtime.artifacts import Artifact
from stages.runtime.errors import ItemError
from stages.runtime.worker import Work, Worker


class Decode(Worker):
    """Writes `clip`. The source's frames are decoded too where they are left out: what follows builds on them."""

    def check(self, work: Work) -> None:
        latents = work.inputs["latents"]
        check_origin(latents, self.model)
        if work.options["new_only"] and not latents.fields["source_frames"]:
            raise ItemError(f"new_only is on and {latents.path} has no source", "leave it out")

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the VAE. Raises JobError."""
        self.vae = load_vae(self.model, options["vae_tiling"], self.device)

    def run(self, work: Work, phase: str) -> None:
        latents = work.inputs["latents"]
        skipped = latents.fields["source_frames"] if work.options["new_only"] else 0
        z = self._on_the_scale_of_the_vae(latents.tensors()["latents"])
        fields = {name: latents.fields[name] for name in ("width", "height", "num_frames", "prompt", "raw", "seed")}
        fields |= {**model_fields(self.model, work), "num_frames": fields["num_frames"] - skipped}
        write_clip(work, islice(map(pixels, decoded(self.vae, z)), skipped, None), fields)

    def follow(self, path: Path, artifact: Artifact, options: Mapping[str, Any], output: Path) -> None:
        check_origin(artifact, self.model)
        if options["vae_tiling"]:
            raise ItemError("vae_tiling decodes a film as a whole", "leave it out, or --follow")
        z = map(self._on_the_scale_of_the_vae, frames_as_they_come(path))
        frames = map(pixels, streamed(self.vae, z))
        skipped = artifact.fields["source_frames"] if options["new_only"] else 0
        size = artifact.fields["width"], artifact.fields["height"]
        with VideoWriter(output, *size, options["fps"], crf=options["crf"], growing=True) as video:
            for rgb in islice(frames, skipped, None):
                video.write(rgb)

    def _on_the_scale_of_the_vae(self, latents: torch.Tensor) -> torch.Tensor:
        return denormalised(self.vae, latents.to(self.device))
