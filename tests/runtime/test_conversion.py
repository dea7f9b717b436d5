"""`fetch` of a model that is declared by its conversion: downloads, log, record, and interrupted conversions."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from stages.families import FAMILIES
from stages.runtime.errors import UsageError
from stages.runtime.model import complete_model, declared_model, declared_models
from tests.hub import REVISION, serve
from tests.tiny import published

ROOT = Path(__file__).parents[2]
LONGLIVE = {"family": "longlive", "convert": published.CONVERT}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FETCH = (str(Path(sys.executable).with_name("fetch")),)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    return published.longlive(tmp_path_factory.mktemp("published"))


@pytest.fixture
def hub(repositories):
    with serve(dict(repositories)) as hub:
        yield hub


@pytest.fixture
def fetch(hub, tmp_path):
    """Runs `fetch`, or other `code`, with a cache of its own; returns its log and the last line of standard error."""

    def run(fails=0, declared=LONGLIVE, code=""):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"mine": declared}}))
        command = (sys.executable, "-c", code) if code else (*FETCH, "mine", "--output", "record.json")
        environment = {**os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == fails, done.stderr
        lines = done.stderr.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")], lines[-1] if lines else ""

    return run


def converted(tmp_path):
    """The folder of the only converted model; nothing else is left beside it."""
    folders = [path for path in (tmp_path / "hf/kinemake").iterdir() if not path.name.endswith(".lock")]
    (folder,) = folders
    return folder


def test_fetch_shows_sizes_and_licences_and_downloads_only_the_files_that_the_conversion_reads(
    hub, fetch, tmp_path, repositories
):
    log, _ = fetch()
    shown = [line for line in log if line["event"] in ("fetch", "conversion")]
    assert [line.get("hub") for line in shown] == ["us/longlive", "us/wan", None] and shown == log[:3]
    assert {line["revision"] for line in shown[:2]} == {REVISION}
    assert {line["licence"] for line in shown[:2]} == {"apache-2.0"}
    checkpoints = sum(path.stat().st_size for path in (repositories["us/longlive"] / "models").iterdir())
    assert shown[0]["bytes"] == shown[2]["bytes"] == checkpoints and shown[2]["bytes_free"] > 0
    assert hub.count_fetches("longlive_base.pt") == 1 and hub.count_fetches(WEIGHTS) == 0
    assert hub.count_fetches("transformer/config.json") == 1
    folder = converted(tmp_path)
    ours, shipped = load_file(folder / WEIGHTS), load_file(published.SHIPPED / WEIGHTS)
    assert ours.keys() == shipped.keys() and all((ours[name] == shipped[name]).all() for name in ours)
    cached = next((tmp_path / "hf/hub").glob("models--us--wan/snapshots/*/vae/*.safetensors"))
    assert os.path.samefile(cached, folder / "vae" / cached.name)


def test_a_second_fetch_neither_downloads_nor_converts(hub, fetch, tmp_path):
    fetch()
    record, before = (tmp_path / "record.json").read_text(), os.stat(converted(tmp_path))
    hub.requests.clear()
    shutil.rmtree(tmp_path / "hf/hub")  # a converted model does not need its sources
    log, _ = fetch()
    assert hub.requests == [] and [line["event"] for line in log] == ["digests"]
    assert os.stat(converted(tmp_path)) == before and (tmp_path / "record.json").read_text() == record


KILLED = """
import os, signal
from stages.families.longlive import convert
save = convert.save
def save_and_die(model, folder):
    save(model, folder)
    os.kill(os.getpid(), signal.SIGKILL)
convert.save = save_and_die
from stages.fetch import main
main(["mine"])
"""


def test_fetch_repeats_a_killed_conversion(hub, fetch, tmp_path):
    fetch(fails=-signal.SIGKILL, code=KILLED)
    (left,) = (tmp_path / "hf/kinemake").glob(f".*/**/{WEIGHTS}")
    assert left.is_file() and not list((tmp_path / "hf/kinemake").glob("longlive-*"))
    fetch()
    assert (converted(tmp_path) / "lora.safetensors").is_file() and hub.count_fetches("longlive_base.pt") == 1


def test_fetch_replaces_a_damaged_converted_model(fetch, tmp_path):
    fetch()
    path = converted(tmp_path) / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    fetch()
    assert (converted(tmp_path) / WEIGHTS).read_bytes() == whole


def test_two_fetches_at_once_convert_once(hub, fetch, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"models": {"mine": LONGLIVE}}))
    environment = {**os.environ, **hub.environment(tmp_path / "hf")}
    both = [subprocess.Popen((*FETCH, "mine"), cwd=tmp_path, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    log = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], log
    assert sum(b'"component": "transformer"' in lines for lines in log) == 1
    assert converted(tmp_path)


def test_other_options_or_revisions_make_another_folder(fetch, tmp_path):
    wan = f"hub://us/wan@{REVISION}"
    families = {name: FAMILIES[name] for name in ("longlive",)}
    declared = [{}, {"wan": wan}, {"ema": True}, {"lora": ""}]
    models = [
        complete_model(declared_model("a", {**LONGLIVE, "convert": {**published.CONVERT, **o}}), families) for o in declared
    ]
    assert len({model.converted for model in models}) == len({str(model.identity) for model in models}) == 4
    again = complete_model(declared_model("b", {**LONGLIVE, "convert": {**published.CONVERT, "ema": "false"}}), families)
    assert again.converted == models[0].converted and complete_model(again, families) == again


def test_fetch_refuses_a_conversion_without_disk_space_before_the_download(hub, fetch, tmp_path):
    large = Path(shutil.copytree(hub.repositories["us/longlive"], tmp_path / "large"))
    os.truncate(large / "models/lora.pt", 10**13)
    hub.repositories["us/longlive"] = large
    _, error = fetch(fails=1)
    assert error.startswith("error: us/longlive and us/wan need 200") and "free: make room, or set HF_HOME" in error
    assert not any("resolve" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    ("convert", "code", "sentence"),
    [
        (
            {"base": "models/longlive_base.pt"},
            2,
            "convert of model mine: 'models/longlive_base.pt' is no address on the model hub",
        ),
        ({"wan": "hub://us"}, 2, "'hub://us' is no address on the model hub: write hub://OWNER/NAME[@REVISION][/PATH]"),
        ({"basis": "hub://us/longlive"}, 2, "convert of model mine sets 'basis': known are base, lora, ema, wan"),
        ({"ema": "perhaps"}, 2, "convert of model mine: option ema is 'perhaps'"),
        ({"base": "hub://us/longlive/model.pt"}, 1, "us/longlive has no model.pt: mend its name"),
        ({"wan": "hub://us/gone"}, 1, "the hub has no us/gone at revision main"),
        (
            {"base": "hub://us/longlive/models/lora.pt"},
            2,
            "lora.pt has no generator (it has generator_lora): give longlive_base.pt",
        ),
    ],
)
def test_fetch_describes_a_wrong_declaration_in_one_sentence(convert, code, sentence, fetch, tmp_path):
    _, error = fetch(fails=code, declared={**LONGLIVE, "convert": {**published.CONVERT, **convert}})
    assert error.startswith("error: ") and sentence in error
    assert not list((tmp_path / "hf/kinemake").glob("longlive-*"))


def test_fetch_names_a_missing_source(fetch):
    _, error = fetch(fails=2, declared={**LONGLIVE, "convert": {"base": published.CONVERT["base"]}})
    assert "convert of model mine: wan is not set: set it: Repository with the other components" in error
    _, error = fetch(fails=2, declared={"family": "vlm", "convert": {"base": published.CONVERT["base"]}})
    assert "family vlm has no conversion: declare path or hub" in error


def test_fetch_converts_stable_diffusion_that_is_published_as_pickles(tiny_sd, fetch, hub, tmp_path):
    import torch

    folder = tmp_path / "sd"
    shutil.copytree(tiny_sd, folder, ignore=shutil.ignore_patterns("controlnet_*", "hed", "depth"))
    names = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for part, name in names.items():
        pickle = folder / part / f"{'pytorch_' if name == 'model' else ''}{name}.bin"
        torch.save({**load_file(folder / part / f"{name}.safetensors"), "x.position_ids": torch.arange(3)}, pickle)
        if part != "vae":  # whose pickle is left where it is
            (folder / part / f"{name}.safetensors").unlink()
    hub.repositories |= {"us/sd": folder, "us/canny": tiny_sd / "controlnet_canny"}
    fetch(declared={"family": "fresco", "convert": {"base": "hub://us/sd", "controlnet_canny": "hub://us/canny"}})
    assert (
        hub.count_fetches("unet/diffusion_pytorch_model.bin") == 1
        and hub.count_fetches("vae/diffusion_pytorch_model.bin") == 0
    )
    for part, name in names.items():
        ours, theirs = (load_file(place / part / f"{name}.safetensors") for place in (converted(tmp_path), tiny_sd))
        assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)


def test_fetch_brings_the_text_encoder_of_a_training(tiny_sd, fetch, hub, tmp_path):
    folder = tmp_path / "clip"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(tiny_sd / part, folder, dirs_exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(b"the same as a pickle")
    hub.repositories["openai/clip-vit-large-patch14"] = folder
    declared = yaml.safe_load((ROOT / "config.yaml").read_text())["models"]["clip-vit-large-patch14"]
    fetch(declared=declared)
    assert hub.count_fetches("model.safetensors") == 1 and hub.count_fetches("pytorch_model.bin") == 0
    load = "from stages.families.text2video.train import load_text_encoder; load_text_encoder('{}')"
    for name in ("mine", "openai/clip-vit-large-patch14"):
        fetch(declared=declared, code=load.format(name))
    shutil.rmtree(tmp_path / "hf")
    _, error = fetch(fails=1, declared=declared, code=load.format("openai/clip-vit-large-patch14"))
    assert "not on this machine: fetch it once: fetch mine; or" in error


def test_the_settings_of_published_models_are_known_before_the_conversion(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    declared = declared_models(ROOT / "config.yaml")
    found = {name: complete_model(model, FAMILIES) for name, model in declared.items() if model.convert}
    variants = {f"dynamicrafter-{variant.replace('_', '-')}": variant for variant in ("256", "512", "1024", "512_interp")}
    assert {name: model.variant for name, model in found.items() if model.variant} == variants
    assert found.keys() - variants.keys() == {"longlive-1.3b", "fresco-realistic"}
    assert found["longlive-1.3b"].options["lora"] == [f"{found['longlive-1.3b'].converted}/lora.safetensors"]


def test_a_family_without_a_conversion_refuses_convert():
    with pytest.raises(UsageError, match="has no conversion"):
        complete_model(declared_model("a", {"family": "text2video", "convert": {"base": "hub://a/b"}}), FAMILIES)
