"""Decode for `text2video`: converts the clip from -1..1 to pixels; no network is needed."""

from stages.families.shared.item import carry, check_lineage
from stages.families.shared.pixels import to_uint8
from stages.families.shared.write_clip import write_clip
from stages.media.options import WriteOptions
from stages.runtime.worker import Work, Worker


class Decode(Worker[WriteOptions]):
    """Writes `clip`."""

    def check(self, work: Work[WriteOptions]) -> None:
        check_lineage(work.artifact("latents"), self.model)

    def run(self, work: Work[WriteOptions]) -> None:
        latents = work.artifact("latents")
        frames = (to_uint8(frame) for frame in latents.tensors()["latents"][0].unbind(1))  # [3, H, W]
        write_clip(work, frames, carry(self.model, work, latents, "seed"))
