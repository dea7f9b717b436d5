"""A repacked copy of published weights loads as they do, bit for bit, and is made again when it is damaged."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, WanTransformer3DModel
from transformers import AutoModelForImageTextToText, CLIPTextModel, UMT5EncoderModel

from stages.families.dynamicrafter.unet import UNet
from stages.families.shared import loading, repacked
from stages.families.shared.loading import DTYPES, load_network, read_ahead, read_network
from stages.families.text2video.unet import UNet3D
from stages.runtime import memory
from stages.runtime.locks import open_lock, try_lock
from stages.runtime.model import cache_folder
from tests.commands import events, wait_for
from tests.tiny import dynamicrafter as tiny

CPU = torch.device("cpu")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def own_copies(tmp_path, monkeypatch):
    """A cache of its own for each test, in which small networks have copies too."""
    monkeypatch.setenv("KINEMAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(repacked, "SMALLEST", 1)


@pytest.fixture
def repositories(tiny_wan, tiny_vlm, tiny_sd, tiny_text2video):
    return {"wan": tiny_wan["14b"], "vlm": tiny_vlm, "sd": tiny_sd, "text2video": tiny_text2video / "model"}


def equal(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


def copies():
    return [path for path in cache_folder().glob("weights/*/*") if not path.name.startswith(".")]


NETWORKS = [
    (WanTransformer3DModel, "wan", "transformer_2"),
    (UMT5EncoderModel, "wan", "text_encoder"),
    (AutoModelForImageTextToText, "vlm", ""),
    (UNet2DConditionModel, "sd", "unet"),
    (ControlNetModel, "sd", "controlnet_hed"),
    (CLIPTextModel, "sd", "text_encoder"),
    (AutoencoderKL, "sd", "vae"),
    (UNet3D, "text2video", "unet"),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "repository", "part"), NETWORKS)
def test_a_copy_loads_bit_for_bit_as_the_published_weights(kind, repository, part, dtype, repositories, capsys):
    folder = repositories[repository]
    published = read_network(kind, folder / part, CPU, dtype=dtype)
    first = load_network(kind, folder, part, dtype=dtype)
    assert len(copies()) == 1
    again = load_network(kind, folder, part, dtype=dtype)
    assert [line["repacked"] for line in events(capsys.readouterr().err) if line["event"] == "load"] == [False, True]
    assert equal(first, published) and equal(again, published)


def test_modules_that_diffusers_keeps_in_float32_stay_so(tiny_wan):
    for _ in range(2):
        transformer = load_network(WanTransformer3DModel, tiny_wan["5b"], "transformer", dtype=torch.bfloat16)
    kept = {name for name, weight in transformer.state_dict().items() if weight.dtype == torch.float32}
    assert "scale_shift_table" in kept and any("time_embedder" in name for name in kept)
    assert 0 < len(kept) < len(transformer.state_dict())


@pytest.fixture
def sharded(tmp_path):
    """A folder with a U-Net of DynamiCrafter, published in float32 in several files."""
    tiny.models("256")["unet"].save_pretrained(tmp_path / "model/unet", max_shard_size="100KB")
    return tmp_path / "model"


def load(folder):
    return load_network(UNet, folder, "unet", dtype=torch.bfloat16)


def test_a_copy_has_the_files_of_a_sharded_network(sharded):
    published = read_network(UNet, sharded / "unet", CPU, dtype=torch.bfloat16)
    load(sharded)
    (copy,) = copies()
    names = {path.name for path in (sharded / "unet").glob("*.safetensors")}
    assert len(names) > 1 and names == {path.name for path in copy.glob("*.safetensors")}
    assert copy.name == "unet-bfloat16"
    assert 2 * size_of(copy) < 1.1 * size_of(sharded / "unet")
    assert equal(load(sharded), published)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def cut(copy):
    path = sorted(copy.glob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-1])


def spoil_header(copy):
    path = sorted(copy.glob("*.safetensors"))[0]
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        spoil_header,
        shutil.rmtree,
        lambda copy: sorted(copy.glob("*.safetensors"))[0].unlink(),
        lambda copy: (copy / repacked.RECORD).unlink(),
        lambda copy: (copy / repacked.RECORD).write_text("[1]"),
    ],
    ids=["cut off", "spoiled header", "deleted", "a file deleted", "killed before the end", "damaged record"],
)
def test_a_damaged_copy_is_made_again(damage, sharded, capsys):
    expected = load(sharded)
    (copy,) = copies()
    damage(copy)
    capsys.readouterr()
    assert equal(load(sharded), expected) and equal(load(sharded), expected)
    assert [line["repacked"] for line in events(capsys.readouterr().err) if line["event"] == "load"] == [False, True]


def test_other_published_weights_have_another_copy(sharded):
    load(sharded)
    tiny.models("256", seed=1)["unet"].save_pretrained(sharded / "unet", max_shard_size="100KB")
    published = read_network(UNet, sharded / "unet", CPU, dtype=torch.bfloat16)
    assert equal(load(sharded), published) and equal(load(sharded), published)
    assert len(copies()) == 2


def test_without_room_on_the_disk_weights_load_without_a_copy(sharded, monkeypatch, capsys):
    published = read_network(UNet, sharded / "unet", CPU, dtype=torch.bfloat16)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    assert equal(load(sharded), published) and copies() == []
    (line,) = [line for line in events(capsys.readouterr().err) if line["event"] == "warning"]
    assert "unet is not kept in torch.bfloat16" in line["reason"] and "0.0 MB are free" in line["reason"]


def test_a_process_does_not_wait_for_another_that_makes_the_copy(sharded):
    published = read_network(UNet, sharded / "unet", CPU, dtype=torch.bfloat16)
    load(sharded)
    (copy,) = copies()
    shutil.rmtree(copy)
    lock = open_lock(copy.with_name(f".{copy.name}.lock"))
    assert try_lock(lock)
    try:
        assert equal(load(sharded), published) and copies() == []
    finally:
        os.close(lock)


@pytest.mark.parametrize(("published", "used"), [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_weights_that_a_copy_would_not_make_smaller_have_none(published, used, tmp_path):
    tiny.models("256")["unet"].to(DTYPES[published]).save_pretrained(tmp_path / "model/unet")
    load_network(UNet, tmp_path / "model", "unet", dtype=DTYPES[used])
    assert copies() == []


def test_small_weights_have_no_copy(sharded, monkeypatch):
    monkeypatch.setattr(repacked, "SMALLEST", size_of(sharded / "unet") + 1)
    load(sharded)
    assert copies() == []


def test_files_are_read_ahead_from_the_copy_if_there_is_one(sharded, monkeypatch):
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, *rest: advised.append(Path(os.readlink(f"/proc/self/fd/{file}"))))
    read_ahead(UNet, sharded, "unet", torch.bfloat16)
    wait_for(lambda: {*advised} == {*(sharded / "unet").glob("*.safetensors")}, "the published files are not read ahead")
    advised.clear()
    load(sharded)
    (copy,) = copies()
    read_ahead(UNet, sharded, "unet", torch.bfloat16)
    wait_for(lambda: {*advised} == {*copy.glob("*.safetensors")}, "the copy is not read ahead")


def test_files_larger_than_main_memory_are_not_read_ahead(sharded, monkeypatch):
    monkeypatch.setattr(memory, "main_memory", lambda: 1000)
    monkeypatch.setattr(loading, "threading", None)  # a thread would be an error
    read_ahead(UNet, sharded, "unet", torch.bfloat16)
