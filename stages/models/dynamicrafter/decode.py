"""Decode for DynamiCrafter: latents become a clip, frame by frame, in float32: the VAE overflows in half precision."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from stages.models.dynamicrafter.common import check_finite
from stages.models.shared import picture_vae
from stages.models.shared.clip import to_uint8, write_clip
from stages.models.shared.origin import check_origin, model_fields
from stages.runtime.worker import Work, Worker


class Decode(Worker):
    """Writes `clip`. Of a loop the last frame, which is the first one again, is left out."""

    def check(self, work: Work) -> None:
        check_origin(work.inputs["latents"], self.model)

    def load(self, options: Mapping[str, Any], phase: str) -> None:
        """Load the VAE. Raises JobError."""
        self.vae = picture_vae.load_vae(self.model, self.device)

    def run(self, work: Work, phase: str) -> None:
        latents = work.inputs["latents"]
        z = latents.tensors()["latents"]
        z = z[:, :, :-1] if latents.fields["loop"] else z
        fields = {name: latents.fields[name] for name in ("width", "height", "prompt", "raw", "seed")}
        fields |= {**model_fields(self.model, work), "num_frames": z.shape[2]}
        write_clip(work, decoded(self.vae, z), fields)


def decoded(vae: AutoencoderKL, latents: torch.Tensor) -> Iterator[np.ndarray]:
    """The frames of latents [1, 4, T, h, w], one by one, uint8 [H, W, 3]. Raises ItemError for one that is not finite."""
    for number, frame in enumerate(picture_vae.decoded(vae, latents)):
        check_finite(frame, f"frame {number} of the clip")
        yield to_uint8(frame.transpose(0, 1))[0]
