"""Decode for `text2video`: the clip's numbers become pixels; no network is needed for that."""

from stages.models.shared.clip import to_uint8, write_clip
from stages.models.shared.origin import check_origin, model_fields
from stages.runtime.worker import Work, Worker


class Decode(Worker):
    """Writes `clip`."""

    def check(self, work: Work) -> None:
        check_origin(work.inputs["latents"], self.model)

    def run(self, work: Work, phase: str) -> None:
        latents = work.inputs["latents"]
        passed_on = ("width", "height", "num_frames", "prompt", "raw", "seed")
        fields = {**{name: latents.fields[name] for name in passed_on}, **model_fields(self.model, work)}
        write_clip(work, to_uint8(latents.tensors()["latents"][0]), fields)
