"""A family whose clips are of one colour: the tone of its weights, brighter by an option. It takes its time if asked to."""

import time

from stages.runtime.options import Family, Option
from stages.runtime.worker import Worker

STAGES = ("encode", "generate", "decode")


class Painter(Worker):
    def __init__(self, setting):
        super().__init__(setting)
        self.named = {"model": self.model.name, "family": "toy", "variant": ""}

    def load(self, options, phase):
        self.tone = int((self.model.folder() / "tone.txt").read_text())

    def run(self, work, phase):
        time.sleep(work.options["seconds"])
        self.make(work)


class Encode(Painter):
    def make(self, work):
        import torch

        from stages.runtime.artifacts import write_tensors

        frames = work.inputs["image"].fields
        fields = {"width": frames["width"], "height": frames["height"], "num_frames": 3, "weights": work.weights}
        texts = {"prompt": "", "negative_prompt": "", "raw": ""}
        tensors = {"prompt_embeds": torch.zeros(1, 1, 1)}
        write_tensors(work.output, "encoded", {**self.named, **fields, **texts}, tensors)


class Generate(Painter):
    def make(self, work):
        import torch

        from stages.runtime.artifacts import write_tensors

        tone = torch.full((1, 1, 3, 1, 1), float(self.tone + work.options["brighter"]))
        fields = {**work.inputs["encoded"].fields, **self.named, "weights": work.weights, "seed": 0}
        write_tensors(work.output, "latents", fields, {"latents": tone})


class Decode(Painter):
    def make(self, work):
        import numpy

        from stages.media.write import VideoWriter, write_png
        from stages.runtime.artifacts import member_path, write_index

        latents = work.inputs["latents"]
        size = latents.fields["width"], latents.fields["height"]
        with VideoWriter(member_path(work.output, ".mp4"), *size, 8) as video:
            for tone in latents.tensors()["latents"].flatten():
                rgb = numpy.full((*size[::-1], 3), int(tone), numpy.uint8)
                video.write(rgb)
        write_png(member_path(work.output, ".last.png"), rgb)
        fields = {**latents.fields, **self.named, "weights": work.weights, "fps": "8/1", "statistics": {}}
        write_index(work.output, "clip", fields, [".mp4", ".last.png"])


FAMILY = Family(
    name="toy",
    version=1,
    options=(
        Option("brighter", int, 0, "Added to the tone", STAGES, minimum=0, maximum=255),
        Option("seconds", float, 0.0, "Time that an item takes", STAGES, minimum=0, maximum=3600, changes_result=False),
    ),
    workers={stage: f"stages.models.toy.options:{stage.capitalize()}" for stage in STAGES},
    weights=dict.fromkeys(STAGES, ("tone.txt",)),
    detect=lambda folder: "" if (folder / "tone.txt").is_file() else None,
)
