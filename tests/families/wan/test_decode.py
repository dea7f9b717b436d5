import errno
import json
import re
import threading

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from stages.families.shared.ahead import ahead
from stages.families.shared.wan import decode as shared_decode
from stages.families.wan import decode
from stages.media.read import frames
from stages.media.write import VideoWriter
from stages.runtime import artifacts
from stages.runtime.errors import ItemError
from tests.commands import stage


@pytest.fixture(scope="module")
def latents(encoded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    for variant, path in encoded.items():
        stage("generate", path, "-o", folder / f"{variant}.safetensors", "--steps", 2, "--seed", 5, "--dtype", "float32")
    return {variant: folder / f"{variant}.safetensors" for variant in encoded}


@pytest.mark.parametrize("variant, fps", [("14b", "16/1"), ("5b", "24/1")])
def test_decoded_clip_describes_its_contents(variant, fps, latents, tmp_path):
    stage("decode", latents[variant], "-o", tmp_path / "clip.json", "--lossless")
    clip = artifacts.read(tmp_path / "clip.json", ("clip",))
    assert set(clip.members) == {".mp4", ".mkv", ".last.png"}
    assert (clip.fields["num_frames"], clip.fields["fps"], clip.fields["seed"]) == (13, fps, 5)
    lossless = np.stack([frame.rgb for frame in frames(clip.member(".mkv"))])
    assert lossless.shape == (13, 64, 96, 3)
    assert np.array_equal(np.array(Image.open(clip.member(".last.png"))), lossless[-1])
    assert clip.fields["statistics"]["whole"]["mean"] == pytest.approx(lossless.mean(axis=(0, 1, 2)).tolist())
    lossy = np.stack([frame.rgb for frame in frames(clip.member(".mp4"))])
    assert lossy.shape == lossless.shape


@pytest.mark.parametrize("option, written", [(29.97003, "30000/1001"), (12.5, "25/2")])
def test_decode_keeps_the_rate_as_a_fraction(option, written, latents, tmp_path):
    stage("decode", latents["5b"], "-o", tmp_path / "clip.json", "--fps", option)
    clip = artifacts.read(tmp_path / "clip.json", ("clip",))
    assert set(clip.members) == {".mp4", ".last.png"}
    assert clip.fields["fps"] == written


def test_decode_with_lower_crf_is_closer_to_the_pixels(latents, tmp_path):
    errors = []
    for crf in (5, 45):
        stage("decode", latents["14b"], "-o", tmp_path / "clip.json", "--lossless", "--crf", crf)
        lossless = np.stack([frame.rgb for frame in frames(tmp_path / "clip.mkv")]).astype(float)
        errors.append(np.abs(np.stack([frame.rgb for frame in frames(tmp_path / "clip.mp4")]) - lossless).mean())
    assert errors[0] < errors[1]


@pytest.fixture
def vaes(monkeypatch):
    """The VAEs that decode loads; afterwards no thread that decodes may be left."""
    loaded, load = [], shared_decode.load_vae
    monkeypatch.setattr(shared_decode, "load_vae", lambda *arguments: loaded.append(load(*arguments)) or loaded[-1])
    yield loaded
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_decoding_that_runs_out_of_memory_while_frames_are_written_goes_on_in_tiles(latents, tmp_path, monkeypatch, vaes):
    whole = decode.decode_video

    def scarce(vae, z):
        for number, frame in enumerate(whole(vae, z)):
            if number == 6 and not vae.use_tiling:
                raise torch.OutOfMemoryError("no room for the next chunk")
            yield frame

    monkeypatch.setattr(decode, "decode_video", scarce)
    stderr = stage("decode", latents["5b"], "-o", tmp_path / "clip.json")
    events = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    assert [event["options"] for event in events if event["event"] == "memory_saving"] == [{"vae_tiling": True}]
    assert [vae.use_tiling for vae in vaes] == [False, True]
    assert artifacts.read(tmp_path / "clip.json", ("clip",)).provenance[-1]["memory_saving"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ItemError("the frames are too large", "make them smaller"), "the frames are too large: make them smaller"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (KeyboardInterrupt(), ""),
    ],
    ids=["of the item", "of the disk", "Ctrl-C"],
)
def test_an_error_of_the_writing_ends_the_decoding_and_clears_the_cache(
    error, message, latents, tmp_path, monkeypatch, vaes
):
    write = VideoWriter.write

    def fails_at_the_third_frame(video, rgb):
        if video.frames == 2:
            raise error
        write(video, rgb)

    monkeypatch.setattr(VideoWriter, "write", fails_at_the_third_frame)
    assert message in stage("decode", latents["5b"], "-o", tmp_path / "clip.json", fails=1)
    (vae,) = vaes
    assert not any(part is not None for part in vae._feat_map) and not (tmp_path / "clip.json").exists()


@torch.no_grad()
def test_frames_that_another_thread_decodes_have_no_gradients_and_leave_gradients_on_elsewhere(tiny_wan):
    vae = AutoencoderKLWan.from_pretrained(tiny_wan["5b"], subfolder="vae")
    latents = torch.randn(1, vae.config.z_dim, 3, 4, 6)
    for tiled in (False, True):
        vae.use_tiling = tiled
        with torch.enable_grad(), ahead(decode.decode_video(vae, latents), 2) as frames:
            for frame in frames:
                assert not frame.requires_grad and torch.is_grad_enabled()


def rewrite_latents(latents, path, tensor=None, **changes):
    """Write latents with another tensor or other fields."""
    from safetensors.torch import save_file

    artifact = artifacts.read(latents, ("latents",))
    tensor = artifact.tensors()["latents"] if tensor is None else tensor
    fields = {name: value for name, value in {**artifact.fields, **changes}.items() if value is not None}
    save_file({"latents": tensor.contiguous()}, path, artifacts._metadata("latents", fields, []))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 14}, "declares 14 frames and holds 13"),
        ({"num_frames": 3}, "num_frames is 3 and its latents have 4 frames"),
        ({"width": 97}, "its latents are 6x4, which does not go with 97x64 pixels"),
        ({"width": 192}, "which does not go with 192x64 pixels"),
        ({"width": 192, "height": 128}, "frame 0 for"),
        ({"seed": None}, "lacks seed"),
    ],
)
def test_decode_refuses_latents_that_differ_from_their_description(changes, message, latents, tmp_path):
    stderr = stage(
        "decode", rewrite_latents(latents["5b"], tmp_path / "l.safetensors", **changes), "-o", tmp_path / "c.json", fails=1
    )
    assert message in stderr and "bug" not in stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z * float("nan"), "latents in .* has NaN or infinite numbers"),
        (lambda z: z.index_fill(2, torch.tensor([1]), float("inf")), "has NaN or infinite numbers"),
        (lambda z: z[:, :, :0], "has shape"),
        (lambda z: z[:, :0], "has shape"),
        (lambda z: z[:, :3], "latents in .* are 3 wide, those of model"),
    ],
    ids=["NaN", "infinite", "no frames", "no channels", "fewer channels"],
)
def test_decode_refuses_latents_of_impossible_values_and_sizes(change, message, latents, tmp_path):
    tensor = change(artifacts.read(latents["5b"], ("latents",)).tensors()["latents"])
    path = rewrite_latents(latents["5b"], tmp_path / "l.safetensors", tensor)
    stderr = stage("decode", path, "-o", tmp_path / "c.json", fails=1)
    assert re.search(message, stderr) and "bug" not in stderr
