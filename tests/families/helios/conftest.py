import pytest
import torch
from PIL import Image

from stages.families.helios import generate
from stages.runtime import artifacts
from tests import zoo
from tests.commands import stage
from tests.tiny import helios

BLOCK, HISTORY = 3, (4, 2, 1)  # chunks of 9 frames
SIZE = {"base": 64, "mid": 128, "distilled": 64}
SEED = 7
FILM = 19  # frames asked for
MADE, SHOWN = 27, 25  # frames of three chunks, and those that the pipeline shows
PROMPT, NEGATIVE = "a small  blue bird &amp; a lake, café", "static, blurred"


@pytest.fixture(scope="session")
def tiny_helios(tmp_path_factory):
    """Folders of tiny models by variant."""
    folder = tmp_path_factory.mktemp("helios")
    return {variant: helios.make(folder / variant, variant) for variant in SIZE}


@pytest.fixture
def one_generator(monkeypatch):
    """One generator draws all noise of a film, as in the pipeline."""
    draws = torch.Generator("cpu").manual_seed(SEED)
    monkeypatch.setattr(generate, "generator", lambda seed, number: draws)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A function side -> the index of the last 13 frames of a video: more than a chunk, less than two."""
    folder = tmp_path_factory.mktemp("source")
    video = zoo.plain(folder, frames=20, size=(128, 128))

    def make(side):
        path = folder / f"{side}.json"
        if not path.exists():
            stage("extract_frames", video, "--select", "tail", "--count", 13, "--size", f"{side}*{side}", "-o", path)
        return path

    return make


def images(index):
    """The frames of an index as images."""
    listed = artifacts.read(index, ("frames",))
    return [Image.open(listed.member(frame["suffix"])) for frame in listed.fields["frames"]]


def encode(output, model, side, *arguments, dtype="float32", frames=FILM, fails=0):
    sizes = ("--size", f"{side}*{side}", "--num-frames", frames, "--num-latent-frames-per-chunk", BLOCK)
    return stage(
        *("encode", *arguments, "-o", output, "-m", model, "--dtype", dtype, *sizes),
        *("--negative-prompt", NEGATIVE, "--max-sequence-length", 64),
        fails=fails,
    )
