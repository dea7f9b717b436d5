"""Decode for FRESCO: keyframes as pictures, named by their place in the source, and as a clip to look at."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stages.models.shared.clip import to_uint8, write_clip
from stages.models.shared.origin import check_origin, model_fields
from stages.models.shared.picture_vae import decoded, load_vae
from stages.runtime.worker import Work, Worker


class Decode(Worker):
    """Writes `clip` with its frames."""

    def check(self, work: Work) -> None:
        check_origin(work.inputs["latents"], self.model)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the VAE, in float32. Raises JobError."""
        self.vae = load_vae(self.model, self.device)

    def run(self, work: Work, phase: str) -> None:
        latents = work.inputs["latents"]
        passed_on = ("width", "height", "num_frames", "frames", "prompt", "raw", "seed")
        fields = {**{name: latents.fields[name] for name in passed_on}, **model_fields(self.model, work)}
        pictures = decoded(self.vae, latents.tensors()["latents"])
        frames = (to_uint8(picture.transpose(0, 1))[0] for picture in pictures)
        kept = replace(work, options={**work.options, "save_frames": True})
        write_clip(kept, frames, fields, numbers=[frame["index"] for frame in fields["frames"]])
