import gc
import json
import shutil
import weakref
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from stages.families.shared.loading import load_network
from stages.families.wan.encode import Encode
from stages.runtime import artifacts
from tests.commands import events, stage, stage_manifest
from tests.records import fields

SHORT = ("--frame-num", 5, "--dtype", "float32")


@pytest.fixture(scope="module")
def caption(tmp_path_factory):
    path = tmp_path_factory.mktemp("caption") / "caption.json"
    artifacts.write_index(path, "caption", fields("caption", raw="**A lake**", prompt="continue video A lake", frames=[0]))
    return path


def write_image(path, width, height, **options):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)
    return path


@pytest.mark.parametrize("variant, condition, mask", [("14b", (16, 4), 4), ("5b", (48, 1), 1)])
def test_encode_writes_tensors_and_fields(variant, condition, mask, encoded):
    artifact = artifacts.read(encoded[variant], ("encoded",))
    tensors, scale = artifact.tensors(), {"14b": 8, "5b": 16}[variant]
    grid = (64 // scale, 96 // scale)
    assert tensors["image_latents"].shape == (1, *condition, *grid)
    assert tensors["mask"].shape == (1, mask, 4, *grid)
    assert (tensors["mask"][:, :, 0] == 1).all() and (tensors["mask"][:, :, 1:] == 0).all()
    assert (artifact.fields["width"], artifact.fields["height"], artifact.fields["num_frames"]) == (96, 64, 13)
    assert artifact.fields["variant"] == variant and len(artifact.fields["weights"]) == 64


def test_encode_takes_the_prompt_of_a_caption_unless_one_is_given(image_5b, tiny_wan, caption, tmp_path):
    stage("encode", image_5b, "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], "--caption", caption, *SHORT)
    fields = artifacts.read(tmp_path / "a.safetensors", ("encoded",)).fields
    assert (fields["prompt"], fields["raw"]) == ("continue video A lake", "**A lake**")
    arguments = ("--caption", caption, "--prompt", "a hill", *SHORT)
    stage("encode", image_5b, "-o", tmp_path / "b.safetensors", "-m", tiny_wan["5b"], *arguments)
    fields = artifacts.read(tmp_path / "b.safetensors", ("encoded",)).fields
    assert (fields["prompt"], fields["raw"]) == ("a hill", "")


@pytest.fixture(scope="module")
def image_5b(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("picture") / "p.png", 64, 32)


def test_encode_refuses_a_size_that_is_not_the_first_frame_s(image_5b, tiny_wan, tmp_path):
    arguments = ("--prompt", "a hill", *SHORT, "-m", tiny_wan["5b"], "-o", tmp_path / "a.safetensors")
    stderr = stage("encode", image_5b, *arguments, "--size", "128*128", fails=1)
    assert "size is 128*128 and" in stderr and "p.png is 64x32" in stderr
    for same in ("64*32", "32*96"):  # its size, and a size to whose area it may have been fitted
        stage("encode", image_5b, *arguments, "--size", same)


def test_encode_without_a_prompt_is_refused(image_5b, tiny_wan, tmp_path):
    stderr = stage("encode", image_5b, "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], fails=1)
    assert "has no prompt" in stderr


def test_text_to_video_by_two_experts_takes_no_first_frame(image_5b, tiny_wan, tmp_path):
    arguments = ("-o", tmp_path / "a.safetensors", "-m", tiny_wan["14b-t2v"], "--prompt", "x")
    assert "has a first frame: the 14b-t2v takes none: give a prompt alone" in stage("encode", image_5b, *arguments, fails=1)


@pytest.mark.parametrize("variant, size, multiple", [("14b", (72, 32), 16), ("5b", (64, 48), 32)])
def test_encode_refuses_an_impossible_size_before_reading_weights(variant, size, multiple, tiny_wan, tmp_path):
    path = write_image(tmp_path / "p.png", *size)
    arguments = ("-m", tiny_wan[variant], "--prompt", "x")
    stderr = stage("encode", path, "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert f"is {size[0]}x{size[1]} and the {variant} needs multiples of {multiple}" in stderr
    assert '"load"' not in stderr


@pytest.mark.parametrize("frame_num", [4, 6, 80])
def test_encode_refuses_a_frame_count_that_the_vae_would_round(frame_num, image_5b, tiny_wan, tmp_path):
    arguments = ("-m", tiny_wan["5b"], "--prompt", "x", "--frame-num", frame_num)
    assert "4n+1" in stage("encode", image_5b, "-o", tmp_path / "a.safetensors", *arguments, fails=2)


def test_encode_takes_the_last_image_of_frames_and_clips(tiny_wan, tmp_path):
    """The last PNG of frames, the last frame of a clip and the same image by hand give the same tensors."""
    (tmp_path / "f").mkdir()
    for index in (0, 7):
        write_image(tmp_path / f"f/{index:06d}.png", 64 - 32 * (index == 0), 32)
    shutil.copy(tmp_path / "f/000007.png", tmp_path / "c.last.png")
    frames = [{"index": i, "time": i / 8, "suffix": f"/{i:06d}.png"} for i in (0, 7)]
    facts = {"width": 64, "height": 32, "select": "tail", "frames": frames, "source": {"fps": "8"}}
    artifacts.write_index(tmp_path / "f.json", "frames", facts, [frame["suffix"] for frame in frames])
    names = fields("clip", width=64, height=32, family="wan", variant="5b")
    artifacts.write_index(tmp_path / "c.json", "clip", names, [".last.png"])
    latents = []
    for source in ("f/000007.png", "f.json", "c.json"):
        output = tmp_path / "out" / f"{len(latents)}.safetensors"
        output.parent.mkdir(exist_ok=True)
        stage("encode", tmp_path / source, "-o", output, "-m", tiny_wan["5b"], "--prompt", "x", *SHORT)
        latents.append(load_file(output)["image_latents"])
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])


@pytest.mark.parametrize("kind", ["small", "huge", "turned"])
def test_encode_refuses_a_frame_whose_size_differs_from_the_index(kind, tiny_wan, tmp_path):
    path, turned = tmp_path / "f" / "000007.png", Image.Exif()
    path.parent.mkdir()
    turned[0x0112] = 6
    if kind == "huge":  # only its header, without image data
        side = (8000).to_bytes(4, "big")
        header = b"IHDR" + side + side + b"\x08\x02\0\0\0"
        path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big") + b"\0\0\0\1IDAT")
    else:
        write_image(path, *((32, 32) if kind == "small" else (64, 32)), **({"exif": turned} if kind == "turned" else {}))
    listed = [{"index": 7, "time": 0.0, "suffix": "/000007.png"}]
    artifacts.write_index(
        tmp_path / "f.json", "frames", fields("frames", width=64, height=32, frames=listed), ["/000007.png"]
    )
    stderr = stage(
        *("encode", tmp_path / "f.json", "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], "--prompt", "x", *SHORT),
        fails=1,
    )
    size = {"small": "32x32", "huge": "8000x8000", "turned": "32x64"}[kind]
    assert f"{path} is {size}, and {tmp_path / 'f.json'} says 64x32: make it again" in stderr


def test_encode_turns_an_image_with_exif_orientation_upright(tiny_wan, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    path = write_image(tmp_path / "p.jpg", 32, 64, exif=exif, quality=95)
    stage("encode", path, "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], "--prompt", "x", *SHORT)
    assert artifacts.read(tmp_path / "a.safetensors", ("encoded",)).fields["width"] == 64


def test_encode_refuses_a_file_that_is_no_image(tiny_wan, tmp_path):
    (tmp_path / "p.png").write_bytes(b"not a picture")
    arguments = ("-m", tiny_wan["5b"], "--prompt", "x")
    stderr = stage("encode", tmp_path / "p.png", "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert "is not a readable image" in stderr


def test_encode_logs_a_truncated_prompt(image_5b, tiny_wan, tmp_path):
    prompt = "a bird  &amp; a lake " * 8
    arguments = ("-m", tiny_wan["5b"], "--prompt", prompt, "--max-sequence-length", 16, *SHORT)
    stderr = stage("encode", image_5b, "-o", tmp_path / "a.safetensors", *arguments)
    (line,) = [event for event in events(stderr) if "are cut off" in event.get("reason", "")]
    clean = " ".join(["a bird & a lake"] * 8)
    tokens = len(AutoTokenizer.from_pretrained(tiny_wan["5b"] / "tokenizer")(clean).input_ids)
    assert (line["tokens"], line["kept"], line["cut"]) == (tokens, 16, tokens - 16)


def test_text_encoder_and_vae_are_never_in_memory_together(image_5b, tiny_wan, tmp_path, monkeypatch):
    networks, in_memory = weakref.WeakSet(), []

    def load(*arguments, **settings):
        gc.collect()
        in_memory.append(len(networks))
        network = load_network(*arguments, **settings)
        networks.add(network)
        return network

    for module in ("encode", "vae"):
        monkeypatch.setattr(f"stages.families.shared.wan.{module}.load_network", load)
    rows = [
        {
            **{"image": str(image_5b), "output": str(tmp_path / f"{prompt}.safetensors")},
            **{"model": str(tiny_wan["5b"]), "prompt": prompt, "num_frames": 5},
        }
        for prompt in ("a", "b")
    ]
    log = events(stage_manifest("encode", tmp_path, rows))
    assert in_memory == [0, 0]
    loads = [(line["phase"], line["component"]) for line in log if line["event"] == "load"]
    assert loads == [("text", "text_encoder"), ("image", "vae")]
    assert (log[-1]["made"], log[-1]["model_loads"]) == (2, 2)


def test_an_encode_that_was_killed_after_the_text_does_not_load_the_text_encoder_again(
    image_5b, tiny_wan, tmp_path, monkeypatch
):
    class Killed(BaseException):
        """A stand-in for SIGKILL."""

    def die(*arguments, **settings):
        raise Killed

    arguments = ("encode", image_5b, "-m", tiny_wan["5b"], "--prompt", "x", *SHORT)
    stage(*arguments, "-o", tmp_path / "whole.safetensors")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("stages.families.shared.wan.encode.load_vae", die)
        stage(*arguments, "-o", tmp_path / "a.safetensors", "--store", tmp_path / "store")
    log = events(stage(*arguments, "-o", tmp_path / "a.safetensors", "--store", tmp_path / "store"))
    assert [line["component"] for line in log if line["event"] == "load"] == ["vae"]
    whole, resumed = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "a"))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "store/partial").iterdir())


def test_memory_that_runs_out_in_the_image_phase_is_saved_without_the_text_encoder(
    image_5b, tiny_wan, tmp_path, monkeypatch
):
    """The item is tried once more, in tiles, with the text that is encoded already."""
    condition = Encode._condition

    def run_out(self, frame, num_frames):
        if not self.pipe.vae.use_tiling:
            raise MemoryError("too large")
        return condition(self, frame, num_frames)

    arguments = ("encode", image_5b, "-m", tiny_wan["5b"], "--prompt", "x", *SHORT, "--store", tmp_path / "store")
    stage(*arguments, "-o", tmp_path / "tiled.safetensors", "--vae-tiling")
    shutil.rmtree(tmp_path / "store")
    monkeypatch.setattr(Encode, "_condition", run_out)
    log = events(stage(*arguments, "-o", tmp_path / "saved.safetensors"))
    assert [line["component"] for line in log if line["event"] == "load"] == ["text_encoder", "vae", "vae"]
    tiled, saved = (load_file(tmp_path / f"{name}.safetensors") for name in ("tiled", "saved"))
    assert all(torch.equal(tiled[name], saved[name]) for name in tiled)
    assert not list((tmp_path / "store/partial").iterdir())


@pytest.mark.parametrize("part", ["text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_encode_names_incomplete_weights(part, damage, image_5b, tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "model")
    if damage == "missing":
        (folder / part).unlink()
    else:
        (folder / part).write_bytes((folder / part).read_bytes()[:1000])
    stderr = stage("encode", image_5b, "-o", tmp_path / "a.safetensors", "-m", folder, "--prompt", "x", fails=1)
    assert str(folder) in stderr and "copy it again" in stderr and "unexpected" not in stderr


def test_encode_fails_an_item_with_values_that_are_not_finite(image_5b, tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "model")
    weights = load_file(folder / "text_encoder/model.safetensors")
    weights["encoder.final_layer_norm.weight"][0] = float("inf")
    save_file(weights, folder / "text_encoder/model.safetensors", {"format": "pt"})
    arguments = ("-m", folder, "--prompt", "x", *SHORT)
    stderr = stage("encode", image_5b, "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert "prompt_embeds of a.safetensors became NaN or infinite" in stderr


def test_encode_refuses_a_wrongly_declared_variant(image_5b, tiny_wan, tmp_path):
    config = tmp_path / "config.yaml"
    model = {"family": "wan", "variant": "14b", "path": str(tiny_wan["5b"])}
    config.write_text(json.dumps({"models": {"mine": model}}))
    arguments = ("-m", "mine", "--config", config, "--prompt", "x")
    stderr = stage("encode", image_5b, "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert "declared as variant 14b" in stderr and "holds 5b" in stderr


def test_encode_refuses_a_transformer_with_image_embeddings(image_5b, tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "model")
    path = folder / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_dim": 1280}))
    stderr = stage("encode", image_5b, "-o", tmp_path / "a.safetensors", "-m", folder, "--prompt", "x", fails=1)
    assert "image_dim is 1280" in stderr
