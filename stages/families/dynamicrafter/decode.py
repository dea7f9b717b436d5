"""Decode for DynamiCrafter: latents to a clip, frame by frame, in float32; the VAE overflows in half precision."""

from collections.abc import Generator

import numpy as np
import torch
from diffusers import AutoencoderKL

from stages.families.dynamicrafter.options import IN_FLOAT32
from stages.families.shared import sd_vae
from stages.families.shared.item import carry, check_finite, check_lineage
from stages.families.shared.pixels import to_uint8
from stages.families.shared.write_clip import write_clip
from stages.media.options import WriteOptions
from stages.runtime.worker import Work, Worker


class Decode(Worker[WriteOptions]):
    """Writes `clip`. A loop's last frame repeats its first and is dropped."""

    def check(self, work: Work[WriteOptions]) -> None:
        check_lineage(work.artifact("latents"), self.model)

    def load(self, options: WriteOptions) -> None:
        """Load the VAE. Raises JobError."""
        self.vae = sd_vae.load_vae(self.model, self.device)

    def run(self, work: Work[WriteOptions]) -> None:
        latents = work.artifact("latents")
        z = latents.tensors()["latents"]
        z = z[:, :, :-1] if latents.fields["loop"] else z
        write_clip(work, decode_frames(self.vae, z), carry(self.model, work, latents, "seed", num_frames=z.shape[2]))


def decode_frames(vae: AutoencoderKL, latents: torch.Tensor) -> Generator[np.ndarray, None, None]:
    """The frames of latents [1, 4, T, h, w], one by one, uint8 [H, W, 3]. Raises ItemError for one that is not finite."""
    for number, (frame,) in enumerate(sd_vae.decode_frames(vae, latents)):
        check_finite(frame, f"frame {number} of the clip", IN_FLOAT32)
        yield to_uint8(frame)
