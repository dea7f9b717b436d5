"""The Python classes give the clips of the stages, and the errors of the stages."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from stages.families.wan import WanV2V, WanV2V5B
from stages.media.read import frames
from stages.media.write import VideoWriter
from stages.runtime import memory
from stages.runtime.errors import ItemError, JobError, UsageError
from tests.commands import stage

CLASSES = {"14b": WanV2V, "5b": WanV2V5B}
AREA_RULES = {"14b": ("--multiple", 16, "--area-rule", "independent"), "5b": ("--multiple", 32, "--area-rule", "joint")}
# of encode, of generate, of caption_vlm; under their own names and the older program's
ENCODE = {"frame_num": 9, "max_sequence_length": 64, "negative_prompt": "blurry", "size": "96*64"}
GENERATE = {"sample_steps": 3, "guidance_scale": 4.0, "seed": 7}
CAPTION = {"num_segments": 2, "max_new_tokens": 8, "prefix": "continue video"}
OPTIONS = {**ENCODE, **GENERATE}


def flags(options):
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def folder(tiny_wan, tiny_vlm, tmp_path_factory):
    """A working folder whose config declares the tiny models, with an image, and a video whose last frame it is."""
    folder = tmp_path_factory.mktemp("project")
    models = {
        f"wan-{variant}": {"family": "wan", "path": str(path), "dtype": "float32", "sizes": ["96*64"], "options": {"fps": 8}}
        for variant, path in tiny_wan.items()
    }
    models["eye"] = {"family": "vlm", "path": str(tiny_vlm), "dtype": "float32"}
    models["lost"] = {"family": "wan", "variant": "5b", "hub": "nobody/lost"}
    (folder / "config.yaml").write_text(json.dumps({"models": models}))
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
    image = Image.fromarray(pixels).resize((120, 100))
    image.save(folder / "image.png")
    with VideoWriter(folder / "video.mkv", 120, 100, 8, codec="lossless") as video:
        for shade in (0, 200):
            video.write(np.full((100, 120, 3), shade, np.uint8))
        video.write(np.array(image))
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def pipes(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return {variant: make(f"wan-{variant}", "eye", "cpu") for variant, make in CLASSES.items()}


def by_hand(first, *prompt, model):
    """uint8 [T, H, W, 3] by the stages, of what encode takes."""
    stage("encode", *first, *prompt, *flags(ENCODE), "--model", model, "-o", "e.safetensors")
    stage("generate", "e.safetensors", *flags(GENERATE), "-o", "l.safetensors")
    stage("decode", "l.safetensors", "--lossless", "-o", "c.json")
    return np.stack([frame.rgb for frame in frames("c.mkv")])


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_v2v_gives_the_clip_of_the_stages(pipes, variant):
    result = pipes[variant].v2v("video.mkv", **OPTIONS, **CAPTION)
    stage("extract_frames", "video.mkv", "--size", "96*64", "--fit", "area", *AREA_RULES[variant], "-o", "f.json")
    stage("caption_vlm", "video.mkv", *flags(CAPTION), "--model", "eye", "-o", "caption.json")
    ours = by_hand(["f.json"], "--caption", "caption.json", model=f"wan-{variant}")
    assert result["videos"].dtype == np.uint8 and result["videos"].std() > 20
    assert np.array_equal(result["videos"], ours)
    prompt = json.loads(open("caption.json").read())["fields"]["prompt"]
    assert (result["prompt"], result["seed"]) == (prompt, 7) and prompt.startswith("continue video")


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_generate_gives_the_clip_of_the_stages_from_an_image(pipes, variant):
    """It is that of the stages, and that of a video which ends with the image."""
    pipe, image = pipes[variant], Image.open("image.png")
    fitted = image.resize((96, 80), Image.Resampling.LANCZOS).crop((0, 8, 96, 72))
    fitted.save("fitted.png")
    made = pipe.generate("a bear", image, fit="crop", return_dict=False, **OPTIONS)
    assert np.array_equal(made, by_hand(["fitted.png"], "--prompt", "a bear", model=f"wan-{variant}"))
    made = pipe.generate("a bear", image, **OPTIONS)["videos"]
    assert np.array_equal(made, pipe.v2v("video.mkv", "a bear", **OPTIONS)["videos"])
    assert not np.array_equal(made, pipe.generate("a bear", image, **{**OPTIONS, "seed": 8})["videos"])


def test_5b_generates_from_a_prompt_alone(pipes):
    made = pipes["5b"].generate("a bear", **OPTIONS)["videos"]
    assert np.array_equal(made, by_hand([], "--prompt", "a bear", model="wan-5b"))
    with pytest.raises(ItemError, match="has no first frame: the 14b needs one"):
        pipes["14b"].generate("a bear", **OPTIONS)


def test_save_video_uses_the_frame_rate_of_the_model(pipes):
    clip = pipes["5b"].generate("a bear", **OPTIONS)["videos"]
    for path, rate in {"default.mp4": (), "faster.mp4": (16,)}.items():
        pipes["5b"].save_video(clip, path, *rate)
    rates = [av.open(path).streams.video[0].average_rate for path in ("default.mp4", "faster.mp4")]
    assert rates == [8, 16]


@pytest.mark.parametrize("variant", ["14b", "5b"])
def test_short_memory_releases_the_weights_of_other_stages(pipes, variant, monkeypatch):
    pipe = pipes[variant]
    roomy = pipe.v2v("video.mkv", "a bear", **OPTIONS)["videos"]

    def check(size, device, offloaded, what):
        if any(one.loaded for one in pipe.stages.values()):
            raise memory.NoRoom(f"{what} does not fit")

    monkeypatch.setattr(memory, "check", check)
    pipe.stages["encode"].release()
    assert np.array_equal(pipe.v2v("video.mkv", "a bear", **OPTIONS)["videos"], roomy)
    assert [name for name, one in pipe.stages.items() if one.loaded] == ["decode"]

    def full(size, device, offloaded, what):
        raise memory.NoRoom(f"{what} does not fit")

    monkeypatch.setattr(memory, "check", full)
    pipe.stages["encode"].release()
    with pytest.raises(ItemError, match=rf"memory ran out in encode \(wan-{variant} for encode does not fit\)"):
        pipe.v2v("video.mkv", "a bear", **OPTIONS)


def test_wrong_arguments_missing_weights_and_missing_gpus_raise_one_sentence(pipes, monkeypatch):
    pipe = pipes["5b"]
    with pytest.raises(UsageError, match="option stepz is not one of WanV2V5B: known are"):
        pipe.generate("a bear", stepz=3)
    with pytest.raises(UsageError, match=r"size 128\*64 is not one of this model's: choose 96\*64"):
        pipe.generate("a bear", size="128*64")
    with pytest.raises(UsageError, match=r"option num_frames is 8: it must be 4n\+1, for example 9"):
        pipe.generate("a bear", num_frames=8)
    with pytest.raises(ItemError, match="missing.mp4 does not exist"):
        pipe.v2v("missing.mp4", "a bear", **OPTIONS)
    with pytest.raises(UsageError, match="model wan-14b is wan 14b: WanV2V5B needs wan 5b"):
        WanV2V5B("wan-14b", device="cpu")
    with pytest.raises(UsageError, match="model eye is vlm: WanV2V needs wan 14b"):
        WanV2V("eye", device="cpu")
    with pytest.raises(JobError, match="the weights of model lost .* are not on this machine: fetch them once: fetch lost"):
        WanV2V5B("lost", device="cpu")
    with pytest.raises(UsageError, match="model wan-14b is of family wan: caption_vlm knows vlm"):
        WanV2V5B("wan-5b", "wan-14b", device="cpu").v2v("video.mkv", **OPTIONS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for devices in ({"device": "cuda:0"}, {"device": "cpu", "vlm_device": "cuda:0"}):
        with pytest.raises(JobError, match="device cuda:0 is asked for and torch sees no GPU: use device cpu or auto"):
            WanV2V5B("wan-5b", "eye", **devices)
    assert WanV2V5B("wan-5b", device="auto").device == "cpu"


def test_importing_the_package_does_not_import_torch():
    code = "import sys, stages.families.wan; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
