import numpy as np
import pytest
from PIL import Image

from stages.media.read import frames
from stages.runtime import artifacts
from tests.commands import stage


@pytest.fixture(scope="module")
def latents(encoded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    for variant, path in encoded.items():
        stage("generate", path, "-o", folder / f"{variant}.safetensors", "--steps", 2, "--seed", 5, "--dtype", "float32")
    return {variant: folder / f"{variant}.safetensors" for variant in encoded}


@pytest.mark.parametrize("variant, fps", [("14b", "16/1"), ("5b", "24/1")])
def test_clip_says_what_it_holds(variant, fps, latents, tmp_path):
    stage("decode", latents[variant], "-o", tmp_path / "clip.json", "--lossless")
    clip = artifacts.read(tmp_path / "clip.json", ("clip",))
    assert set(clip.members) == {".mp4", ".mkv", ".last.png"}
    assert (clip.fields["num_frames"], clip.fields["fps"], clip.fields["seed"]) == (17, fps, 5)
    lossless = np.stack([frame.rgb for frame in frames(clip.member(".mkv"))])
    assert lossless.shape == (17, 64, 96, 3)
    assert np.array_equal(np.array(Image.open(clip.member(".last.png"))), lossless[-1])
    assert clip.fields["statistics"]["whole"]["mean"] == pytest.approx(lossless.mean(axis=(0, 1, 2)).tolist())
    lossy = np.stack([frame.rgb for frame in frames(clip.member(".mp4"))])
    assert lossy.shape == lossless.shape


@pytest.mark.parametrize("given, written", [(29.97003, "30000/1001"), (12.5, "25/2")])
def test_rate_is_kept_as_a_fraction(given, written, latents, tmp_path):
    stage("decode", latents["5b"], "-o", tmp_path / "clip.json", "--fps", given)
    clip = artifacts.read(tmp_path / "clip.json", ("clip",))
    assert set(clip.members) == {".mp4", ".last.png"}
    assert clip.fields["fps"] == written


def test_lower_crf_is_closer_to_the_pixels(latents, tmp_path):
    errors = []
    for crf in (5, 45):
        stage("decode", latents["14b"], "-o", tmp_path / "clip.json", "--lossless", "--crf", crf)
        lossless = np.stack([frame.rgb for frame in frames(tmp_path / "clip.mkv")]).astype(float)
        errors.append(np.abs(np.stack([frame.rgb for frame in frames(tmp_path / "clip.mp4")]) - lossless).mean())
    assert errors[0] < errors[1]
