import numpy as np
import pytest
from diffusers import WanTransformer3DModel
from PIL import Image

from stages.families import FAMILIES
from stages.runtime.options import resolve
from tests.commands import stage

# Their 24 tokens of the 5b, 24 wide, are whole vectors of a CPU, as those of real sizes are. Of others torch computes the
# last elements of an activation by another function, so that tokens of one timestep are not of the same bits.
FRAMES = 13
PROMPT, NEGATIVE = "a small  blue bird &amp; a lake, café", "静态，模糊不清"


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """A first frame of 96x64: a gradient with noise."""
    height, width = np.mgrid[0:64, 0:96]
    rgb = np.stack([height * 3, width * 2, (height + width) % 256], axis=-1)
    rgb = rgb + np.random.default_rng(0).integers(0, 40, rgb.shape)
    path = tmp_path_factory.mktemp("picture") / "first.png"
    Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def encoded(tiny_wan, image, tmp_path_factory):
    """The encoding of the prompt, and of the image where the variant takes one, in float32, by variant."""
    folder = tmp_path_factory.mktemp("encoded")
    for variant, model in tiny_wan.items():
        encode(None if variant == "14b-t2v" else image, folder / f"{variant}.safetensors", model, "float32")
    return {variant: folder / f"{variant}.safetensors" for variant in tiny_wan}


def encode(image, output, model, dtype, frames=FRAMES):
    stage(
        *("encode", *([image] if image else ["--size", "96*64"]), "-o", output, "-m", model, "--dtype", dtype),
        *("--prompt", PROMPT, "--negative-prompt", NEGATIVE, "--frame-num", frames, "--max-sequence-length", 64),
    )
    return output


def resolved(**given):
    """The options of the 5b, checked. Raises UsageError."""
    family = FAMILIES["wan"]
    values = resolve(family.options, {"seed": 1, **given}, "5b")
    family.check("5b", values, ())
    return values


@pytest.fixture
def passes(monkeypatch):
    """The forward passes of all Wan transformers, each by the folder of its weights."""
    counted, forward, load = {}, WanTransformer3DModel.forward, WanTransformer3DModel.from_pretrained

    def load_recording(folder, **options):
        model, loading_info = load(folder, **options)
        model.comes_from = folder.name
        counted.setdefault(folder.name, 0)
        return model, loading_info

    def counting(self, *arguments, **options):
        counted[self.comes_from] += 1
        return forward(self, *arguments, **options)

    monkeypatch.setattr(WanTransformer3DModel, "from_pretrained", load_recording)
    monkeypatch.setattr(WanTransformer3DModel, "forward", counting)
    return counted
