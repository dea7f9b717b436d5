"""Decode for Wan2.2: latents become a clip, its lossless last frame, and its statistics."""

from collections.abc import Mapping
from typing import Any

from stages.models.shared.clip import write_clip
from stages.models.shared.origin import check_origin, model_fields
from stages.models.shared.wan.vae import decoded, denormalised, load_vae, pixels
from stages.runtime.worker import Work, Worker


class Decode(Worker):
    """Writes `clip`: the video, its last frame as PNG, and the video once more without loss where that is wanted."""

    def check(self, work: Work) -> None:
        check_origin(work.inputs["latents"], self.model)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the VAE. Raises JobError."""
        self.vae = load_vae(self.model, options["vae_tiling"], self.device)

    def run(self, work: Work, phase: str) -> None:
        latents = work.inputs["latents"]
        z = denormalised(self.vae, latents.tensors()["latents"].to(self.device))
        passed_on = ("width", "height", "num_frames", "prompt", "raw", "seed")
        fields = {**{name: latents.fields[name] for name in passed_on}, **model_fields(self.model, work)}
        write_clip(work, map(pixels, decoded(self.vae, z)), fields)
