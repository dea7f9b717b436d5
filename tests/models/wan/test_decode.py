import re

import numpy as np
import pytest
import torch
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


def changed(latents, path, tensor=None, **own):
    """The latents of a clip with other numbers, or saying other things of themselves."""
    from safetensors.torch import save_file

    artifact = artifacts.read(latents, ("latents",))
    tensor = artifact.tensors()["latents"] if tensor is None else tensor
    fields = {name: value for name, value in {**artifact.fields, **own}.items() if value is not None}
    save_file({"latents": tensor.contiguous()}, path, artifacts._metadata("latents", fields, []))
    return path


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ({"num_frames": 18}, "speaks of 18 frames and holds 17"),
        ({"num_frames": 4}, "num_frames is 4 and its latents have 5 frames"),
        ({"width": 97}, "its latents are 6x4, which does not go with 97x64 pixels"),
        ({"width": 192}, "which does not go with 192x64 pixels"),
        ({"width": 192, "height": 128}, "frame 0 for"),
        ({"seed": None}, "lacks seed"),
    ],
)
def test_latents_that_are_not_what_they_say_are_not_decoded(own, complaint, latents, tmp_path):
    said = stage("decode", changed(latents["5b"], tmp_path / "l.safetensors", **own), "-o", tmp_path / "c.json", fails=1)
    assert complaint in said and "bug" not in said


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda z: z * float("nan"), "latents in .* has NaN or infinite numbers"),
        (lambda z: z.index_fill(2, torch.tensor([1]), float("inf")), "has NaN or infinite numbers"),
        (lambda z: z[:, :, :0], "has shape"),
        (lambda z: z[:, :0], "has shape"),
        (lambda z: z[:, :3], "latents in .* are 3 wide, those of model"),
    ],
    ids=["NaN", "infinite", "no frames", "no channels", "fewer channels"],
)
def test_latents_of_numbers_and_sizes_that_cannot_be_are_not_decoded(change, complaint, latents, tmp_path):
    tensor = change(artifacts.read(latents["5b"], ("latents",)).tensors()["latents"])
    path = changed(latents["5b"], tmp_path / "l.safetensors", tensor)
    said = stage("decode", path, "-o", tmp_path / "c.json", fails=1)
    assert re.search(complaint, said) and "bug" not in said
