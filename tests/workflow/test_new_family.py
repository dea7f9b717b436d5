"""A new kind of model is one folder and one recipe: nothing else of the code is touched."""

import shutil

import pytest

from tests import zoo
from tests.workflow.conftest import ROOT, Project

OPTIONS = '''
"""A family whose clips are of one colour: the tone of its weights, brighter by an option."""

from stages.runtime.options import Family, Option


class Worker:
    def __init__(self, setting):
        self.model = setting.model
        self.named = {"model": self.model.name, "family": "toy", "variant": ""}

    def phases(self):
        return ("",)

    def check(self, work):
        pass

    def load(self, options, phase):
        self.tone = int((self.model.folder() / "tone.txt").read_text())


class Encode(Worker):
    def run(self, work, phase):
        import torch
        from stages.runtime.artifacts import write_tensors

        frames = work.inputs["image"].fields
        fields = {"width": frames["width"], "height": frames["height"], "num_frames": 3, "weights": work.weights}
        texts = {"prompt": "", "negative_prompt": "", "raw": ""}
        tensors = {"prompt_embeds": torch.zeros(1, 1, 1)}
        write_tensors(work.output, "encoded", {**self.named, **fields, **texts}, tensors)


class Generate(Worker):
    def run(self, work, phase):
        import torch
        from stages.runtime.artifacts import write_tensors

        tone = torch.full((1, 1, 3, 1, 1), float(self.tone + work.options["brighter"]))
        fields = {**work.inputs["encoded"].fields, **self.named, "weights": work.weights, "seed": 0}
        write_tensors(work.output, "latents", fields, {"latents": tone})


class Decode(Worker):
    def run(self, work, phase):
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
    options=(Option("brighter", int, 0, "Added to the tone", ("generate",), minimum=0),),
    workers={stage.lower(): f"stages.models.toy.options:{stage}" for stage in ("Encode", "Generate", "Decode")},
    weights=dict.fromkeys(("encode", "generate", "decode"), ("tone.txt",)),
    detect=lambda folder: "" if (folder / "tone.txt").is_file() else None,
)
'''

RECIPE = '''
"""`toy`: a clip of one colour, as large as the video."""

FAMILIES = ("toy",)
NEEDS = ("video",)
DEFAULTS = {"brighter": 10}
OPTIONS = ()


def items(clip):
    frames, encoded, latents, pixels = map(clip.step, ("frames.json", "e.safetensors", "l.safetensors", "clip.json"))
    return {
        "extract_frames": [clip.item("extract_frames", frames, video=clip.video)],
        "encode": [clip.item("encode", encoded, image=frames)],
        "generate": [clip.item("generate", latents, encoded=encoded)],
        "decode": [clip.item("decode", pixels, latents=latents)],
        "concat": [clip.item("concat", clip.result(clip.run.film), clips=[pixels])],
    }
'''


@pytest.fixture
def checkout(tmp_path):
    """A copy of this checkout, and two files more."""
    root = tmp_path / "checkout"
    for name in ("stages", "profiles", "envs"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "Snakefile", root)
    (root / "stages/models/toy").mkdir()
    (root / "stages/models/toy/options.py").write_text(OPTIONS)
    (root / "stages/plan/recipes/toy.py").write_text(RECIPE)
    return root


def test_a_family_and_its_recipe_are_two_files(checkout, tmp_path):
    project = Project(tmp_path / "project", {"grey": {"family": "toy", "path": "grey"}}, root=checkout)
    project.path("grey").mkdir()
    project.path("grey/tone.txt").write_text("100")
    zoo.plain(project.folder, "a.mp4", frames=4, size=(32, 32))
    clips = [{"id": "one", "video": "a.mp4"}, {"id": "two", "video": "a.mp4", "brighter": 60}]
    project.configure(demo={"recipe": "toy", "clips": clips, "model": "grey"})
    project.run("--cores", 1)
    for clip, tone in (("one", 110), ("two", 160)):
        rgb = zoo.rgb_by_ffmpeg(project.path(f"results/demo/{clip}.mp4"), (32, 32))
        assert len(rgb) == 3
        assert rgb.mean() == pytest.approx(tone, abs=2)  # 8 bits of luma
    help_text = project.start("--help", program="generate").communicate()[0]
    assert "--brighter" in help_text
