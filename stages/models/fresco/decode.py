"""Decode for FRESCO: keyframes as pictures, named by their place in the source, and as a clip to look at."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL

from stages.models.shared.clip import to_uint8, write_clip
from stages.models.shared.loading import loading
from stages.models.shared.origin import check_origin, model_fields
from stages.runtime.worker import Work, Worker


class Decode(Worker):
    """Writes `clip` with its frames."""

    def check(self, work: Work) -> None:
        check_origin(work.inputs["latents"], self.model)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the VAE, in float32. Raises JobError."""
        with loading(self.model):
            self.vae = AutoencoderKL.from_pretrained(
                self.model.folder(), subfolder="vae", dtype=torch.float32, use_safetensors=True
            )
        self.vae.to(self.device).eval()

    def run(self, work: Work, phase: str) -> None:
        latents = work.inputs["latents"]
        passed_on = ("width", "height", "num_frames", "frames", "prompt", "raw", "seed")
        fields = {**{name: latents.fields[name] for name in passed_on}, **model_fields(self.model, work)}
        frames = (self._pixels(latent) for latent in latents.tensors()["latents"][0].unbind(1))
        kept = replace(work, options={**work.options, "save_frames": True})
        write_clip(kept, frames, fields, numbers=[frame["index"] for frame in fields["frames"]])

    @torch.no_grad()
    def _pixels(self, latent: torch.Tensor):
        """A latent [4, h, w] as uint8 [H, W, 3]."""
        image = self.vae.decode(latent[None].to(self.device) / self.vae.config.scaling_factor, return_dict=False)[0]
        return to_uint8(image.transpose(0, 1))[0]
