"""From Python: the very clip that the stages make, and the words of the old program."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stages.media.read import read_picture
from stages.models.dynamicrafter import DynamiCrafterImg2VideoPipeline, save_video
from stages.runtime.errors import UsageError
from tests import zoo
from tests.commands import stage


@pytest.fixture(scope="module")
def folder(repositories, tmp_path_factory):
    """A working folder whose config declares the tiny models."""
    folder = tmp_path_factory.mktemp("project")
    declared = {
        f"crafter-{variant}": {"family": "dynamicrafter", "variant": variant, "path": str(path), "sizes": ["64*64"]}
        for variant, path in repositories.items()
    }
    (folder / "config.yaml").write_text(json.dumps({"models": declared}))
    colours = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(colours).resize((90, 70)).save(folder / "a.png")
    return folder


@pytest.fixture
def pipe(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return DynamiCrafterImg2VideoPipeline("256_256", "cpu", model="crafter-256", dtype="float32")


def test_it_makes_the_clip_of_the_stages(pipe, folder):
    words = {"num_inference_steps": 2, "guidance_scale": 5.0, "eta": 0.5, "frame_stride": 4, "seed": 7}
    result = pipe(Image.open("a.png"), "a bear", "blurry", num_frames=16, height=64, width=64, return_dict=True, **words)
    frames = result["videos"]
    assert frames.shape == (16, 64, 64, 3) and frames.dtype == np.uint8
    options = [word for name, value in words.items() for word in (f"--{name.replace('_', '-')}", value)]
    given = ("--prompt", "a bear", "--negative-prompt", "blurry", "--size", "64*64", "--model", "crafter-256")
    stage("encode", "a.png", *given, "-o", "e.safetensors")
    stage("generate", "e.safetensors", *options, "--dtype", "float32", "-o", "l.safetensors")
    stage("decode", "l.safetensors", "--save-frames", "-o", "c.json")
    assert all(np.array_equal(rgb, read_picture(f"c/{number:06d}.png")) for number, rgb in enumerate(frames))
    pipe.save_video(frames, "made.mp4", fps=8)
    save_video(list(frames), "again.mp4")
    assert (folder / "made.mp4").read_bytes() == (folder / "again.mp4").read_bytes()
    assert len(zoo.rgb_by_ffmpeg("made.mp4", (64, 64))) == 16


def test_the_bare_clip_and_what_is_refused(pipe):
    picture = Image.open("a.png")
    assert pipe(picture, "a bear", num_inference_steps=1, return_dict=False).shape == (16, 64, 64, 3)
    with pytest.raises(UsageError, match=r"the size 128\*64 is not one of this model's: choose 64\*64"):
        pipe(picture, "a bear", width=128)
    with pytest.raises(UsageError, match="option steps is not one of this pipeline"):
        pipe(picture, "a bear", steps=3)
    with pytest.raises(UsageError, match="model crafter-256 is of variant 256 and resolution is 512"):
        DynamiCrafterImg2VideoPipeline(512, "cpu", model="crafter-256")
    with pytest.raises(UsageError, match="resolution is 300: take one of 256, 512, 1024, 512_interp"):
        DynamiCrafterImg2VideoPipeline(300, "cpu")


def test_two_pictures(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pipe = DynamiCrafterImg2VideoPipeline("512_interp", "cpu", model="crafter-512_interp", dtype="float32")
    picture = Image.open("a.png")
    turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = (pipe(picture, "a bear", last_image=last, num_inference_steps=1)["videos"] for last in (picture, turned))
    assert not np.array_equal(one, other)
    with pytest.raises(UsageError, match="neither last_image nor loop are set"):
        pipe(picture, "a bear")


def test_the_package_is_read_without_torch():
    code = "import sys, stages.models.dynamicrafter; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
