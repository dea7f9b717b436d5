import json
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from stages.runtime import artifacts
from tests.commands import stage
from tests.records import fields

SHORT = ("--frame-num", 5, "--dtype", "float32")


@pytest.fixture(scope="module")
def caption(tmp_path_factory):
    path = tmp_path_factory.mktemp("caption") / "caption.json"
    artifacts.write_index(path, "caption", fields("caption", raw="**A lake**", prompt="continue video A lake", frames=[0]))
    return path


def picture(path, width, height, **options):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)
    return path


@pytest.mark.parametrize("variant, condition, mask", [("14b", (16, 5), 4), ("5b", (48, 1), 1)])
def test_tensors_and_fields(variant, condition, mask, encoded):
    artifact = artifacts.read(encoded[variant], ("encoded",))
    tensors, scale = artifact.tensors(), {"14b": 8, "5b": 16}[variant]
    grid = (64 // scale, 96 // scale)
    assert tensors["image_latents"].shape == (1, *condition, *grid)
    assert tensors["mask"].shape == (1, mask, 5, *grid)
    assert (tensors["mask"][:, :, 0] == 1).all() and (tensors["mask"][:, :, 1:] == 0).all()
    assert (artifact.fields["width"], artifact.fields["height"], artifact.fields["num_frames"]) == (96, 64, 17)
    assert artifact.fields["variant"] == variant and len(artifact.fields["weights"]) == 64


def test_caption_gives_the_prompt_and_an_explicit_prompt_wins(picture_5b, tiny_wan, caption, tmp_path):
    stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], "--caption", caption, *SHORT)
    fields = artifacts.read(tmp_path / "a.safetensors", ("encoded",)).fields
    assert (fields["prompt"], fields["raw"]) == ("continue video A lake", "**A lake**")
    arguments = ("--caption", caption, "--prompt", "a hill", *SHORT)
    stage("encode", picture_5b, "-o", tmp_path / "b.safetensors", "-m", tiny_wan["5b"], *arguments)
    fields = artifacts.read(tmp_path / "b.safetensors", ("encoded",)).fields
    assert (fields["prompt"], fields["raw"]) == ("a hill", "")


@pytest.fixture(scope="module")
def picture_5b(tmp_path_factory):
    return picture(tmp_path_factory.mktemp("picture") / "p.png", 64, 32)


def test_no_prompt_is_refused(picture_5b, tiny_wan, tmp_path):
    said = stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], fails=1)
    assert "has no prompt" in said


@pytest.mark.parametrize("variant, size, multiple", [("14b", (72, 32), 16), ("5b", (64, 48), 32)])
def test_size_that_does_not_fit_is_refused_before_weights_are_read(variant, size, multiple, tiny_wan, tmp_path):
    path = picture(tmp_path / "p.png", *size)
    arguments = ("-m", tiny_wan[variant], "--prompt", "x")
    said = stage("encode", path, "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert f"is {size[0]}x{size[1]} and the {variant} needs multiples of {multiple}" in said
    assert '"load"' not in said


@pytest.mark.parametrize("frame_num", [4, 6, 80])
def test_number_of_frames_that_the_vae_would_round_is_refused(frame_num, picture_5b, tiny_wan, tmp_path):
    arguments = ("-m", tiny_wan["5b"], "--prompt", "x", "--frame-num", frame_num)
    assert "4n+1" in stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", *arguments, fails=2)


def test_frames_and_clips_start_from_their_last_picture(tiny_wan, tmp_path):
    """The last PNG of frames, the last frame of a clip and the same picture by hand give the same tensors."""
    (tmp_path / "f").mkdir()
    for index in (0, 7):
        picture(tmp_path / f"f/{index:06d}.png", 64 - 32 * (index == 0), 32)
    shutil.copy(tmp_path / "f/000007.png", tmp_path / "c.last.png")
    frames = [{"index": i, "time": i / 8, "suffix": f"/{i:06d}.png"} for i in (0, 7)]
    facts = {"width": 64, "height": 32, "select": "tail", "frames": frames, "source": {"fps": "8"}}
    artifacts.write_index(tmp_path / "f.json", "frames", facts, [frame["suffix"] for frame in frames])
    names = fields("clip", width=64, height=32, family="wan", variant="5b")
    artifacts.write_index(tmp_path / "c.json", "clip", names, [".last.png"])
    made = []
    for source in ("f/000007.png", "f.json", "c.json"):
        output = tmp_path / "out" / f"{len(made)}.safetensors"
        output.parent.mkdir(exist_ok=True)
        stage("encode", tmp_path / source, "-o", output, "-m", tiny_wan["5b"], "--prompt", "x", *SHORT)
        made.append(load_file(output)["image_latents"])
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@pytest.mark.parametrize("way", ["small", "huge", "turned"])
def test_a_frame_of_another_size_than_its_index_tells_is_refused(way, tiny_wan, tmp_path):
    path, turned = tmp_path / "f" / "000007.png", Image.Exif()
    path.parent.mkdir()
    turned[0x0112] = 6
    if way == "huge":  # its header alone, in which nothing is decoded
        side = (8000).to_bytes(4, "big")
        header = b"IHDR" + side + side + b"\x08\x02\0\0\0"
        path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big") + b"\0\0\0\1IDAT")
    else:
        picture(path, *((32, 32) if way == "small" else (64, 32)), **({"exif": turned} if way == "turned" else {}))
    listed = [{"index": 7, "time": 0.0, "suffix": "/000007.png"}]
    artifacts.write_index(
        tmp_path / "f.json", "frames", fields("frames", width=64, height=32, frames=listed), ["/000007.png"]
    )
    said = stage(
        *("encode", tmp_path / "f.json", "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], "--prompt", "x", *SHORT),
        fails=1,
    )
    size = {"small": "32x32", "huge": "8000x8000", "turned": "32x64"}[way]
    assert f"{path} is {size}, and {tmp_path / 'f.json'} says 64x32: make it again" in said


def test_picture_of_a_phone_is_turned_upright(tiny_wan, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    path = picture(tmp_path / "p.jpg", 32, 64, exif=exif, quality=95)
    stage("encode", path, "-o", tmp_path / "a.safetensors", "-m", tiny_wan["5b"], "--prompt", "x", *SHORT)
    assert artifacts.read(tmp_path / "a.safetensors", ("encoded",)).fields["width"] == 64


def test_file_that_is_no_picture_is_refused(tiny_wan, tmp_path):
    (tmp_path / "p.png").write_bytes(b"not a picture")
    arguments = ("-m", tiny_wan["5b"], "--prompt", "x")
    said = stage("encode", tmp_path / "p.png", "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert "is not a picture" in said


def test_prompt_that_is_cut_is_logged(picture_5b, tiny_wan, tmp_path):
    prompt = "a bird  &amp; a lake " * 8
    arguments = ("-m", tiny_wan["5b"], "--prompt", prompt, "--max-sequence-length", 16, *SHORT)
    said = stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", *arguments)
    (line,) = [json.loads(line) for line in said.splitlines() if "prompt_cut" in line]
    clean = " ".join(["a bird & a lake"] * 8)
    tokens = len(AutoTokenizer.from_pretrained(tiny_wan["5b"] / "tokenizer")(clean).input_ids)
    assert (line["tokens"], line["kept"], line["cut"]) == (tokens, 16, tokens - 16)


@pytest.mark.parametrize("part", ["text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_weights_that_are_not_whole_are_named(part, damage, picture_5b, tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "model")
    if damage == "missing":
        (folder / part).unlink()
    else:
        (folder / part).write_bytes((folder / part).read_bytes()[:1000])
    said = stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", "-m", folder, "--prompt", "x", fails=1)
    assert str(folder) in said and "copy it again" in said and "unexpected" not in said


def test_numbers_that_are_not_finite_fail_the_item(picture_5b, tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "model")
    weights = load_file(folder / "text_encoder/model.safetensors")
    weights["encoder.final_layer_norm.weight"][0] = float("inf")
    save_file(weights, folder / "text_encoder/model.safetensors", {"format": "pt"})
    arguments = ("-m", folder, "--prompt", "x", *SHORT)
    said = stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert "prompt_embeds of a.safetensors has NaN or infinite numbers" in said


def test_variant_that_is_declared_wrongly_is_refused(picture_5b, tiny_wan, tmp_path):
    config = tmp_path / "config.yaml"
    model = {"family": "wan", "variant": "14b", "path": str(tiny_wan["5b"])}
    config.write_text(json.dumps({"models": {"mine": model}}))
    arguments = ("-m", "mine", "--config", config, "--prompt", "x")
    said = stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", *arguments, fails=1)
    assert "declared as variant 14b" in said and "holds 5b" in said


def test_transformer_that_wants_image_embeddings_is_refused(picture_5b, tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan["5b"], tmp_path / "model")
    path = folder / "transformer/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_dim": 1280}))
    said = stage("encode", picture_5b, "-o", tmp_path / "a.safetensors", "-m", folder, "--prompt", "x", fails=1)
    assert "image_dim is 1280" in said
