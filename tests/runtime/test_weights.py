"""Weights are present and complete before anything is loaded, and are fetched from the hub once."""

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

from stages.families import FAMILIES
from stages.runtime import components, weights
from stages.runtime.errors import JobError
from stages.runtime.model import Model
from tests.commands import events, stage
from tests.hub import REVISION, serve

HUB_ID = "us/tiny"


@pytest.fixture
def copy(tiny_wan, tmp_path):
    return Path(shutil.copytree(tiny_wan["5b"], tmp_path / "model"))


def check(folder):
    return weights.check(Model("mine", "wan", "5b", path=str(folder)), FAMILIES["wan"])


def test_check_returns_the_files_that_the_family_reads(copy):
    (copy / "README.md").write_text("not read")
    names = {path.relative_to(copy).as_posix() for path in check(copy)}
    assert {"model_index.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"} <= names
    assert "README.md" not in names


@pytest.mark.parametrize(
    ("missing", "message"),
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
def test_a_missing_weight_file_is_named(missing, message, copy):
    shutil.rmtree(copy / missing) if (copy / missing).is_dir() else (copy / missing).unlink()
    with pytest.raises(JobError, match=rf"model mine .*{message}: copy it again, with all its files"):
        check(copy)


def test_a_missing_shard_of_a_weight_index_is_named(copy):
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
def test_a_truncated_weight_file_is_named_with_its_size(cut, copy):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(JobError, match=r"model mine .*vae/diffusion_pytorch_model.safetensors (is no|has)"):
        check(copy)


def test_a_weight_file_that_is_not_safetensors_is_named(copy):
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
    """Gives the VAE a weight index, with its weights as the only shard; no index for an empty text."""

    def damage(copy):
        (copy / VAE).rename(copy / "vae" / SHARD)
        if content:
            (copy / INDEX).write_text(content if isinstance(content, str) else json.dumps({"weight_map": content}))

    return damage


def edit(name, **values):
    def damage(copy):
        (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **values}))

    return damage


def rename(name, new):
    return lambda copy: (copy / name).rename((copy / name).with_name(new))


def write(name, text):
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
            rename(VAE, "mine.safetensors"),
            r"/vae lacks diffusion_pytorch_model.safetensors \(it has mine",
        ),
        (
            rename(TEXT, "pytorch_model.bin"),
            "/text_encoder has weights in pytorch_model.bin alone, a pickle",
        ),
        (write(VAE, POINTER), f"{VAE} is a pointer of Git LFS and not the file: run git lfs pull"),
        (write("tokenizer/tokenizer.json", POINTER), "tokenizer.json is a pointer of Git LFS"),
        (
            rename("tokenizer/tokenizer.json", "spiece.model"),
            "/tokenizer has spiece.model and lacks tokenizer.json: fetch that file too, or pip install sentencepiece",
        ),
        (write("tokenizer/special_tokens_map.json", "[]"), "special_tokens_map.json holds a list and not a table"),
        (
            edit("model_index.json", vae=["diffusers", "AutoencoderKL"]),
            "model_index.json names AutoencoderKL for vae, which has to be a AutoencoderKLWan",
        ),
        (edit("vae/config.json", _class_name="AutoencoderKL"), "is of a 'AutoencoderKL' and not of a AutoencoderKLWan"),
        (edit("text_encoder/config.json", model_type="t5"), "text_encoder/config.json is of a 't5' and not of a umt5"),
        (
            edit("scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
            "scheduler_config.json is of a 'DDIMScheduler' and not of a UniPCMultistepScheduler",
        ),
    ],
)
def test_a_damaged_model_is_reported_before_loading(damage, sentence, copy, monkeypatch):
    monkeypatch.setattr(components, "find_spec", lambda name: None)
    damage(copy)
    with pytest.raises(JobError, match=f"model mine cannot be loaded: .*{sentence}"):
        check(copy)


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_weights_that_exist_only_as_a_variant_are_loaded(variant, copy, tiny_wan, tmp_path):
    """For example a repository that has model.fp16.safetensors and no model.safetensors."""
    for name in (VAE, TEXT):
        (copy / name).rename(copy / name.replace(".safetensors", f".{variant}.safetensors"))
    check(copy)
    for folder, output in ((copy, "a"), (tiny_wan["5b"], "b")):
        stage("encode", "-o", tmp_path / f"{output}.safetensors", "-m", folder, *SHORT)
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_weight_files_that_are_not_loaded_are_not_checked_and_take_no_memory(copy):
    model, encode = Model("mine", "wan", "5b", path=str(copy)), FAMILIES["wan"].stages["encode"]
    before = weights.bytes_in_memory(model, encode, {"dtype": "float32"})
    shutil.copy(copy / TEXT, copy / "text_encoder/model.fp16.safetensors")
    (copy / "vae/other.safetensors").write_text("not read")
    check(copy)
    weights.count_parameters.cache_clear()
    assert weights.bytes_in_memory(model, encode, {"dtype": "float32"}) == before


def test_weights_in_8_bits_take_half_of_the_memory(copy):
    model, generate = Model("mine", "wan", "5b", path=str(copy)), FAMILIES["wan"].stages["generate"]
    half = weights.bytes_in_memory(model, generate, {"dtype": "bfloat16", "layerwise_casting": "none"})
    assert 2 * weights.bytes_in_memory(model, generate, {"dtype": "bfloat16", "layerwise_casting": "float8_e4m3fn"}) == half


def test_encode_needs_room_for_the_larger_of_its_networks(copy):
    model, encode = Model("mine", "wan", "5b", path=str(copy)), FAMILIES["wan"].stages["encode"]
    text, vae = (weights.count_parameters(copy / part) for part in ("text_encoder", "vae"))
    assert weights.bytes_in_memory(model, encode, {"dtype": "bfloat16"}) == max(2 * text, 4 * vae)


def test_a_stage_reports_damaged_weights_of_later_stages(copy, tmp_path):
    (copy / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    stderr = stage("encode", "-o", tmp_path / "a.safetensors", "-m", copy, *SHORT, fails=1)
    assert "transformer/diffusion_pytorch_model.safetensors is no safetensors file" in stderr and '"load"' not in stderr


def test_a_stage_runs_without_the_weights_of_later_stages(copy, tmp_path):
    shutil.rmtree(copy / "transformer")
    stage("encode", "-o", tmp_path / "a.safetensors", "-m", copy, *SHORT)


# ---------------------------------------------------------------------------------------------------------------- fetch


@pytest.fixture
def hub(tiny_wan):
    with serve({HUB_ID: tiny_wan["5b"]}) as hub:
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    """A function that runs the program `fetch` with its own cache and returns its standard error."""
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"models": {"tiny": {"family": "wan", "variant": "5b", "hub": HUB_ID}}})
    )

    def run(fails=0, name="tiny"):
        environment = {**os.environ, **hub.environment(tmp_path / "hf")}
        command = [str(Path(sys.executable).with_name("fetch")), name, "--output", "record.json"]
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert process.returncode == fails, process.stderr
        return process.stderr

    return run


def test_fetch_downloads_once_and_writes_a_record(hub, fetch, tiny_wan, tmp_path):
    log = events(fetch())
    assert log[0]["event"] == "fetch" and log[0]["revision"] == REVISION and log[0]["licence"] == "apache-2.0"
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["hub"], record["revision"]) == (HUB_ID, REVISION)
    assert log[0]["bytes"] == sum(facts["bytes"] for facts in record["files"].values())
    name = "vae/diffusion_pytorch_model.safetensors"
    digest = subprocess.run(["sha256sum", tiny_wan["5b"] / name], capture_output=True, text=True).stdout.split()[0]
    assert record["files"][name]["sha256"] == digest
    hub.requests.clear()
    fetch()
    assert hub.requests == []


def test_an_interrupted_fetch_resumes(hub, fetch):
    hub.cut = large = "transformer/diffusion_pytorch_model.safetensors"
    fetch()
    assert hub.cut == "" and hub.count_fetches(large) == 2
    assert hub.count_fetches("vae/diffusion_pytorch_model.safetensors") == 1


def test_fetch_refuses_a_full_disk_before_downloading(hub, fetch, monkeypatch, tiny_wan, tmp_path):
    with open(tmp_path / "large.safetensors", "wb") as file:
        file.truncate(10**13)
    hub.repositories[HUB_ID] = Path(shutil.copytree(tiny_wan["5b"], tmp_path / "large"))
    (tmp_path / "large.safetensors").rename(hub.repositories[HUB_ID] / "vae" / "more.safetensors")
    stderr = fetch(fails=1)
    assert f"error: {HUB_ID} needs 10000.0 GB more and " in stderr and "GB free: make room, or set HF_HOME" in stderr
    assert not any("resolve" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
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
def test_a_failed_fetch_is_one_sentence(spoil, sentence, hub, fetch):
    spoil(hub)
    stderr = fetch(fails=1)
    assert [line for line in stderr.splitlines() if line.startswith("error: ")] == [stderr.splitlines()[-1]]
    assert stderr.splitlines()[-1].startswith(sentence) and "Traceback" not in stderr


def test_fetch_of_an_undeclared_model_is_one_sentence(fetch):
    assert fetch(fails=2, name="other") == "error: model other is not declared in the config: declared are tiny\n"
