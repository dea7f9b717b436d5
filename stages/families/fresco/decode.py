"""Decode for FRESCO: keyframes as images, numbered as in the source, and as a preview clip."""

from dataclasses import replace

from stages.families.fresco.options import DecodeOptions
from stages.families.shared.item import carry, check_lineage
from stages.families.shared.pixels import to_uint8
from stages.families.shared.sd_vae import decode_frames, load_vae
from stages.families.shared.write_clip import write_clip
from stages.runtime.worker import Work, Worker


class Decode(Worker[DecodeOptions]):
    """Writes `clip` with its frames as images."""

    def check(self, work: Work[DecodeOptions]) -> None:
        check_lineage(work.artifact("latents"), self.model)

    def load(self, options: DecodeOptions) -> None:
        """Load the VAE, in float32. Raises JobError."""
        self.vae = load_vae(self.model, self.device)

    def run(self, work: Work[DecodeOptions]) -> None:
        latents = work.artifact("latents")
        fields = carry(self.model, work, latents, "frames", "seed")
        frames = (to_uint8(image) for (image,) in decode_frames(self.vae, latents.tensors()["latents"]))
        kept = replace(work, options=replace(work.options, save_frames=True))
        write_clip(kept, frames, fields, numbers=[frame["index"] for frame in fields["frames"]])
