"""Weights are here and whole before anything is loaded, and come from the hub once."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages.models import FAMILIES
from stages.runtime import components, weights
from stages.runtime.errors import JobError
from stages.runtime.model import Model
from tests.commands import stage
from tests.hub import REVISION, serving

HUB_ID = "us/tiny"


@pytest.fixture
def copy(tiny_wan, tmp_path):
    return Path(shutil.copytree(tiny_wan["5b"], tmp_path / "model"))


def check(folder):
    return weights.check(Model("mine", "wan", "5b", path=str(folder)), FAMILIES["wan"])


def test_files_are_those_that_the_family_reads(copy):
    (copy / "README.md").write_text("not read")
    names = {path.relative_to(copy).as_posix() for path in check(copy)}
    assert {"model_index.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"} <= names
    assert "README.md" not in names


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "/vae lacks diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "/text_encoder lacks model.safetensors"),
        ("transformer/config.json", "/transformer lacks config.json"),
        ("transformer", "lack transformer/"),
        ("tokenizer", "lack tokenizer/"),
        ("tokenizer/tokenizer.json", "/tokenizer lacks tokenizer.json"),
        ("tokenizer/tokenizer_config.json", "/tokenizer lacks tokenizer_config.json"),
        ("scheduler/scheduler_config.json", "/scheduler lacks scheduler_config.json"),
        ("model_index.json", "lack model_index.json"),
    ],
)
def test_a_missing_file_is_named(lost, named, copy):
    shutil.rmtree(copy / lost) if (copy / lost).is_dir() else (copy / lost).unlink()
    with pytest.raises(JobError, match=rf"model mine .*{named}: copy it again, with all its files"):
        check(copy)


def test_a_missing_part_of_an_index_is_named(copy):
    folder = copy / "transformer"
    whole = folder / "diffusion_pytorch_model.safetensors"
    parts = {name: "diffusion_pytorch_model-00001-of-00002.safetensors" for name in load_file(whole)}
    parts[next(iter(parts))] = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    whole.rename(folder / "diffusion_pytorch_model-00001-of-00002.safetensors")
    sentence = "/transformer lacks diffusion_pytorch_model-00002-of-00002.safetensors, which its index names: copy it again"
    with pytest.raises(JobError, match=sentence):
        check(copy)


@pytest.mark.parametrize("cut", [1, 8, 100, -1, -1000])
def test_a_torn_file_is_named_with_its_size(cut, copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(JobError, match=r"model mine .*vae/diffusion_pytorch_model.safetensors (is no|has)"):
        check(copy)


def test_a_file_of_another_kind_is_named(copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(struct.pack("<Q", 4) + b"none" + bytes(100))
    with pytest.raises(JobError, match="is no safetensors file"):
        check(copy)


VAE, TEXT = "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
INDEX = "vae/diffusion_pytorch_model.safetensors.index.json"
SHARD = "diffusion_pytorch_model-00001-of-00001.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 196288\n"
SHORT = ("--prompt", "x", "--size", "32*32", "--frame-num", 1)


def index(content):
    """Gives the VAE an index, with its weights as the only shard; none for an empty text."""

    def damage(copy):
        (copy / VAE).rename(copy / "vae" / SHARD)
        if content:
            (copy / INDEX).write_text(content if isinstance(content, str) else json.dumps({"weight_map": content}))

    return damage


def change(name, **values):
    def damage(copy):
        (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **values}))

    return damage


def moved(name, new):
    return lambda copy: (copy / name).rename((copy / name).with_name(new))


def holding(name, text):
    return lambda copy: (copy / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (index("{"), f"{INDEX} is not readable as JSON"),
        (index("{}"), f"{INDEX} has no weight_map from tensors to files"),
        (index(["a"]), f"{INDEX} has no weight_map"),
        (index({"a": 7}), f"{INDEX} has no weight_map"),
        (index({"a": "../../a.safetensors"}), "which is no safetensors file beside it"),
        (index({"a": "/etc/passwd"}), "which is no safetensors file beside it"),
        (index({"a": "weights.bin"}), "which is no safetensors file beside it"),
        (index({"a": SHARD}), f"{SHARD} lacks the tensor a, which the index places there"),
        (index(""), "/vae has shards of weights and lacks diffusion_pytorch_model.safetensors.index.json"),
        (
            moved(VAE, "mine.safetensors"),
            r"/vae lacks diffusion_pytorch_model.safetensors \(it has mine",
        ),
        (
            moved(TEXT, "pytorch_model.bin"),
            "/text_encoder has weights in pytorch_model.bin alone, a pickle",
        ),
        (holding(VAE, POINTER), f"{VAE} is a pointer of Git LFS and not the file: run git lfs pull"),
        (holding("tokenizer/tokenizer.json", POINTER), "tokenizer.json is a pointer of Git LFS"),
        (
            moved("tokenizer/tokenizer.json", "spiece.model"),
            "/tokenizer has spiece.model and lacks tokenizer.json: fetch that file too, or pip install sentencepiece",
        ),
        (holding("tokenizer/special_tokens_map.json", "[]"), "special_tokens_map.json holds a list and not a table"),
        (
            change("model_index.json", vae=["diffusers", "AutoencoderKL"]),
            "model_index.json names AutoencoderKL for vae, which has to be a AutoencoderKLWan",
        ),
        (change("vae/config.json", _class_name="AutoencoderKL"), "is of a 'AutoencoderKL' and not of a AutoencoderKLWan"),
        (change("text_encoder/config.json", model_type="t5"), "text_encoder/config.json is of a 't5' and not of a umt5"),
        (
            change("scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
            "scheduler_config.json is of a 'DDIMScheduler' and not of a UniPCMultistepScheduler",
        ),
    ],
)
def test_what_a_loader_would_stumble_over_is_told_before(damage, sentence, copy, monkeypatch):
    monkeypatch.setattr(components, "find_spec", lambda name: None)
    damage(copy)
    with pytest.raises(JobError, match=f"model mine cannot be loaded: .*{sentence}"):
        check(copy)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_weights_of_a_variant_alone_are_loaded(variant, copy, tiny_wan, tmp_path):
    """As a repository that has model.fp16.safetensors and no model.safetensors."""
    for name in (VAE, TEXT):
        (copy / name).rename(copy / name.replace(".safetensors", f".{variant}.safetensors"))
    check(copy)
    for folder, output in ((copy, "a"), (tiny_wan["5b"], "b")):
        stage("encode", "-o", tmp_path / f"{output}.safetensors", "-m", folder, *SHORT)
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_files_that_are_not_loaded_need_not_be_whole_and_take_no_memory(copy):
    model, resident = Model("mine", "wan", "5b", path=str(copy)), FAMILIES["wan"].resident["encode"]
    before = weights.resident_bytes(model, resident, "float32")
    shutil.copy(copy / TEXT, copy / "text_encoder/model.fp16.safetensors")
    (copy / "vae/other.safetensors").write_text("not read")
    check(copy)
    weights.numbers.cache_clear()
    assert weights.resident_bytes(model, resident, "float32") == before


def test_a_stage_tells_of_parts_that_only_later_ones_load(copy, tmp_path):
    (copy / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    said = stage("encode", "-o", tmp_path / "a.safetensors", "-m", copy, *SHORT, fails=1)
    assert "transformer/diffusion_pytorch_model.safetensors is no safetensors file" in said and '"load"' not in said


def test_a_stage_goes_without_parts_that_only_later_ones_load(copy, tmp_path):
    shutil.rmtree(copy / "transformer")
    stage("encode", "-o", tmp_path / "a.safetensors", "-m", copy, *SHORT)


# ---------------------------------------------------------------------------------------------------------------- fetch


@pytest.fixture
def hub(tiny_wan):
    with serving({HUB_ID: tiny_wan["5b"]}) as hub:
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    """Runs the program `fetch` with a cache of its own and returns its standard error."""
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"models": {"tiny": {"family": "wan", "variant": "5b", "hub": HUB_ID}}})
    )

    def run(fails=0, name="tiny"):
        environment = {**os.environ, **hub.environment(tmp_path / "hf")}
        command = [str(Path(sys.executable).with_name("fetch")), name, "--output", "record.json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == fails, done.stderr
        return done.stderr

    return run


def test_fetched_once_and_recorded(hub, fetch, tiny_wan, tmp_path):
    said = [json.loads(line) for line in fetch().splitlines() if line.startswith("{")]
    assert said[0]["event"] == "fetch" and said[0]["revision"] == REVISION and said[0]["licence"] == "apache-2.0"
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["hub"], record["revision"]) == (HUB_ID, REVISION)
    assert said[0]["bytes"] == sum(facts["bytes"] for facts in record["files"].values())
    name = "vae/diffusion_pytorch_model.safetensors"
    digest = subprocess.run(["sha256sum", tiny_wan["5b"] / name], capture_output=True, text=True).stdout.split()[0]
    assert record["files"][name]["sha256"] == digest
    hub.requests.clear()
    fetch()
    assert hub.requests == []


def test_interrupted_it_goes_on_where_it_was(hub, fetch):
    hub.cut = large = "transformer/diffusion_pytorch_model.safetensors"
    fetch()
    assert hub.cut == "" and hub.asked_for(large) == 2
    assert hub.asked_for("vae/diffusion_pytorch_model.safetensors") == 1


def test_too_little_disk_is_refused_before_a_byte_comes(hub, fetch, monkeypatch, tiny_wan, tmp_path):
    with open(tmp_path / "large.safetensors", "wb") as file:
        file.truncate(10**13)
    hub.repositories[HUB_ID] = Path(shutil.copytree(tiny_wan["5b"], tmp_path / "large"))
    (tmp_path / "large.safetensors").rename(hub.repositories[HUB_ID] / "vae" / "more.safetensors")
    said = fetch(fails=1)
    assert f"error: {HUB_ID} needs 10000.0 GB more and " in said and "GB free: make room, or set HF_HOME" in said
    assert not any("resolve" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda hub: hub.repositories.clear(),
            "error: the hub has no us/tiny at revision main: mend the model in the config",
        ),
        (
            lambda hub: hub.gated.add(HUB_ID),
            "error: us/tiny asks for consent first: give it on its page, then: hf auth login",
        ),
        (lambda hub: setattr(hub, "address", "http://127.0.0.1:9"), "error: the hub cannot be asked for us/tiny ("),
    ],
    ids=["unknown", "gated", "no network"],
)
def test_what_cannot_be_fetched_is_one_sentence(change, sentence, hub, fetch):
    change(hub)
    said = fetch(fails=1)
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [said.splitlines()[-1]]
    assert said.splitlines()[-1].startswith(sentence) and "Traceback" not in said


def test_a_model_that_is_not_declared_is_one_sentence(fetch):
    assert fetch(fails=2, name="other") == "error: model other is not declared in the config: declared are tiny\n"
