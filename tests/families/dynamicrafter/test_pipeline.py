"""The Python pipeline gives the clip of the stages and has the arguments of the old program."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.families.dynamicrafter import DynamiCrafterImg2VideoPipeline, save_video
from stages.media.marks import MADE, read_marks
from stages.media.read import read_image
from stages.runtime.errors import JobError, UsageError
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
    sources = {"ckpt": "hub://nobody/lost/model.ckpt", "resolution": "1024", "clip": "hub://nobody/clip"}
    declared["dynamicrafter-1024"] = {"family": "dynamicrafter", "convert": sources}
    (folder / "config.yaml").write_text(json.dumps({"models": declared}))
    colours = np.random.default_rng(0).integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(colours).resize((90, 70)).save(folder / "a.png")
    return folder


@pytest.fixture
def pipe(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return DynamiCrafterImg2VideoPipeline("256_256", "cpu", model="crafter-256", dtype="float32")


def test_pipeline_gives_the_clip_of_the_stages(pipe, folder):
    keywords = {"num_inference_steps": 2, "guidance_scale": 5.0, "eta": 0.5, "frame_stride": 4, "seed": 7}
    result = pipe(Image.open("a.png"), "a bear", "blurry", num_frames=16, height=64, width=64, return_dict=True, **keywords)
    frames = result["videos"]
    assert frames.shape == (16, 64, 64, 3) and frames.dtype == np.uint8
    options = [argument for name, value in keywords.items() for argument in (f"--{name.replace('_', '-')}", value)]
    arguments = ("--prompt", "a bear", "--negative-prompt", "blurry", "--size", "64*64", "--model", "crafter-256")
    stage("encode", "a.png", *arguments, "-o", "e.safetensors")
    stage("generate", "e.safetensors", *options, "--dtype", "float32", "-o", "l.safetensors")
    stage("decode", "l.safetensors", "--save-frames", "-o", "c.json")
    assert all(np.array_equal(rgb, read_image(f"c/{number:06d}.png")) for number, rgb in enumerate(frames))
    pipe.save_video(frames, "made.mp4", fps=8)
    save_video(list(frames), "again.mp4")
    assert read_marks(Path("again.mp4")).source == MADE
    assert (folder / "made.mp4").read_bytes() == (folder / "again.mp4").read_bytes()
    assert len(zoo.rgb_by_ffmpeg("made.mp4", (64, 64))) == 16


OLDER_GUIDE = """
from PIL import Image

# 1. 初始化pipeline
pipeline = DynamiCrafterImg2VideoPipeline(
    resolution='256_256',  # 或 '512_512', '1024_1024'
    device='cpu'
)

# 2. 加载图片
image = Image.open('your_image.jpg').convert('RGB')

# 3. 生成视频
result = pipeline(
    image=image,
    prompt="your text prompt here",
    negative_prompt="blurry, low quality",  # 可选
    num_inference_steps=50,                 # DDIM步数
    guidance_scale=7.5,                     # 引导强度
    eta=1.0,                               # DDIM eta参数
    frame_stride=3,                        # 帧步长
    num_frames=16,                         # 帧数
    height=256,                            # 高度
    width=256,                             # 宽度
    return_dict=True
)

# 4. 保存视频
pipeline.save_video(result['videos'], 'output.mp4', fps=8)
"""


def test_the_lines_of_the_older_guide_run(repositories, tmp_path, monkeypatch):
    """As its guide has them, but for the import, the device and fewer steps; the model is where the error advises it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/dynamicrafter-256").symlink_to(repositories["256"])
    Image.new("RGB", (300, 200), "teal").save("your_image.jpg")
    exec(OLDER_GUIDE.replace("steps=50", "steps=2"), {"DynamiCrafterImg2VideoPipeline": DynamiCrafterImg2VideoPipeline})
    assert zoo.rgb_by_ffmpeg("output.mp4", (256, 256)).shape == (16, 256, 256, 3)


@pytest.mark.parametrize("resolution, variant", [("512_512", "512"), (512, "512"), ("512_interp", "512_interp")])
def test_resolutions_have_the_names_of_the_older_program(resolution, variant, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert DynamiCrafterImg2VideoPipeline(resolution, "cpu", model=f"crafter-{variant}").model.variant == variant


def test_pipeline_returns_the_bare_clip_and_refuses_wrong_arguments(pipe, monkeypatch):
    image = Image.open("a.png")
    assert pipe(image, "a bear", num_inference_steps=1, return_dict=False).shape == (16, 64, 64, 3)
    with pytest.raises(UsageError, match=r"size 128\*64 is not one of this model's: choose 64\*64"):
        pipe(image, "a bear", width=128)
    with pytest.raises(UsageError, match="option steps is not one of this pipeline"):
        pipe(image, "a bear", steps=3)
    with pytest.raises(UsageError, match="model crafter-256 is of variant 256 and resolution is 512"):
        DynamiCrafterImg2VideoPipeline(512, "cpu", model="crafter-256")
    with pytest.raises(UsageError, match="resolution is 300: use one of 256, 512, 1024, 512_interp"):
        DynamiCrafterImg2VideoPipeline(300, "cpu")
    with pytest.raises(JobError, match="the weights of model dynamicrafter-1024 .* fetch dynamicrafter-1024"):
        DynamiCrafterImg2VideoPipeline("1024_1024", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(JobError, match="device cuda:0 is asked for and torch sees no GPU: use device cpu or auto"):
        DynamiCrafterImg2VideoPipeline(256, "cuda:0", model="crafter-256")


def test_pipeline_interpolates_between_two_images(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pipe = DynamiCrafterImg2VideoPipeline("512_interp", "cpu", model="crafter-512_interp", dtype="float32")
    image = Image.open("a.png")
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    first, second = (pipe(image, "a bear", last_image=last, num_inference_steps=1)["videos"] for last in (image, flipped))
    assert not np.array_equal(first, second)
    with pytest.raises(UsageError, match="neither last_image nor loop are set"):
        pipe(image, "a bear")


def test_importing_the_package_does_not_import_torch():
    code = "import sys, stages.families.dynamicrafter; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
