"""Decode for Wan2.2: turns latents into a clip, its last frame without loss, and its statistics."""

from stages.families.shared.item import carry
from stages.families.shared.pixels import to_uint8
from stages.families.shared.wan.decode import WanDecode
from stages.families.shared.wan.vae import decode_video, denormalise
from stages.families.shared.write_clip import write_clip
from stages.families.wan.options import DecodeOptions
from stages.runtime.worker import Work


class Decode(WanDecode[DecodeOptions]):
    """Writes `clip`: the video, its last frame as PNG and, if asked for, a lossless copy of the video."""

    def run(self, work: Work[DecodeOptions]) -> None:
        latents = work.artifact("latents")
        z = denormalise(self.vae, latents.tensors()["latents"].to(self.device))
        frames = (to_uint8(frame) for frame in decode_video(self.vae, z))
        write_clip(work, frames, carry(self.model, work, latents, "seed"))
