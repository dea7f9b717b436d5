"""A family whose clips have one tone: that of its weights, brighter by an option. Another option makes each stage slower.

It takes a first frame or a prompt alone, so that the recipes v2v, chain and text2video can use it.
"""

import time

from stages.runtime.options import Family, Implementation, Options, option
from stages.runtime.worker import Worker

SIDE = 32  # pixels of a clip, whatever the size of its first frame


class Painter(Worker):
    def __init__(self, model, device):
        super().__init__(model, device)
        self.model_fields = {"model": self.model.name, "family": "toy", "variant": ""}

    def load(self, options):
        self.tone = int((self.model.folder() / "tone.txt").read_text())

    def run(self, work):
        time.sleep(work.options.seconds)
        self.make(work)


class Encode(Painter):
    def make(self, work):
        import torch

        from stages.runtime.artifacts import write_tensors

        caption = work.optional("caption")
        fields = {"width": SIDE, "height": SIDE, "num_frames": work.options.num_frames, "weights": work.weights}
        prompt = caption.fields["prompt"] if caption else work.options.prompt
        texts = {"prompt": prompt, "negative_prompt": "", "raw": ""}
        tensors = {"prompt_embeds": torch.zeros(1, 1, 1)}
        write_tensors(work.output, "encoded", {**self.model_fields, **fields, **texts}, tensors)


class Generate(Painter):
    def make(self, work):
        import torch

        from stages.runtime.artifacts import write_tensors

        encoded = work.artifact("encoded").fields
        tone = torch.full((1, 1, encoded["num_frames"], 1, 1), float(self.tone + work.options.brighter))
        fields = {**encoded, **self.model_fields, "weights": work.weights, "seed": 0}
        write_tensors(work.output, "latents", fields, {"latents": tone})


class Decode(Painter):
    def make(self, work):
        import numpy

        from stages.media.write import VideoWriter, write_png
        from stages.runtime.artifacts import member_path, write_index

        latents = work.artifact("latents")
        size = latents.fields["width"], latents.fields["height"]
        tones = latents.tensors()["latents"].flatten().tolist()
        frames = [numpy.full((*size[::-1], 3), int(tone), numpy.uint8) for tone in tones]
        codecs = {".mp4": "h264", **({".mkv": "lossless"} if work.options.lossless else {})}
        for suffix, codec in codecs.items():
            with VideoWriter(member_path(work.output, suffix), *size, 8, codec=codec) as video:
                for rgb in frames:
                    video.write(rgb)
        write_png(member_path(work.output, ".last.png"), frames[-1])
        fields = {**latents.fields, **self.model_fields, "weights": work.weights, "fps": "8/1", "statistics": {}}
        write_index(work.output, "clip", fields, [*codecs, ".last.png"])


class Timed(Options):
    seconds: float = option(0.0, "Time that an item takes", minimum=0, maximum=3600, changes_result=False)


class EncodeOptions(Timed):
    prompt: str = option("", "The prompt", set_by_recipe=True)
    num_frames: int = option(3, "Number of frames", minimum=1, maximum=100)


class GenerateOptions(Timed):
    seed: int = option(0, "Seed of the noise; here there is none", minimum=0, maximum=2**62, changes_result=False)
    brighter: int = option(0, "Added to the tone", minimum=0, maximum=255)


class DecodeOptions(Timed):
    lossless: bool = option(False, "Also write the clip lossless (FFV1), for concat to encode again")


def stage(name, options):
    return Implementation(f"stages.families.toy.options:{name.capitalize()}", options, weights=("tone.txt",))


FAMILY = Family(
    name="toy",
    version=1,
    stages={
        "encode": stage("encode", EncodeOptions),
        "generate": stage("generate", GenerateOptions),
        "decode": stage("decode", DecodeOptions),
    },
    detect=lambda folder: "" if (folder / "tone.txt").is_file() else None,
    fit_first_frame=lambda variant, values: {},  # any size will do
    from_text=("",),
)
