"""Weights from the model hub: fetched once, by a rule that runs before any job that loads them."""

import json
import shutil
from pathlib import Path

import pytest

from tests.hub import REVISION, serve
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count

OPTIONS = {name: value for name, value in TINY.items() if name != "max_new_tokens"}
CLIPS = [{"id": "a", "prompt": "a prompt"}]
RUN = {"recipe": "text2video", "fuse": True, "clips": CLIPS, "model": "tiny", "options": OPTIONS}


@pytest.fixture
def hub(tiny_wan, tmp_path, monkeypatch):
    with serve({"us/tiny": Path(shutil.copytree(tiny_wan["5b"], tmp_path / "repository"))}) as hub:
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def project(tmp_path):
    model = {"family": "wan", "variant": "5b", "hub": "us/tiny", "dtype": "float32", "sizes": ["32*32"]}
    project = Project(tmp_path / "project", {"tiny": model})
    project.configure(one=RUN, two=RUN)
    return project


def test_a_hub_model_is_fetched_once_for_all_runs(hub, project):
    project.run(*ONE_WORKER)
    record = project.read("weights/tiny.json")
    assert (record["hub"], record["revision"]) == ("us/tiny", REVISION)
    assert hub.count_fetches("transformer/diffusion_pytorch_model.safetensors") == 1
    assert frame_count(project.path("results/two/a.mp4")) == 5
    hub.requests.clear()
    shutil.rmtree(project.path("results/one"))
    project.run(*ONE_WORKER)
    assert project.path("results/one/a.mp4").is_file() and hub.requests == []


def test_a_failed_fetch_stops_all_stages_and_is_reported(hub, project):
    hub.repositories.clear()
    stderr = project.run(*ONE_WORKER, fails=1)
    assert "weights.tiny  fetch  the hub has no us/tiny at revision main: mend the model in the config" in stderr
    assert not list(project.path("results").glob("*/steps/logs/*.log"))  # no stage was started


def truncate(path):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:100_000])
    return f"{path} has 100000 bytes instead of {size}: copy it again, with all its files"


def remove(path):
    path.unlink()
    return f"{path.parent} lacks {path.name}: copy it again, with all its files"


def add_auto_map(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    return f"{path} asks for code of its own (auto_map), which Kinemake does not run"


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (truncate, "transformer/diffusion_pytorch_model.safetensors"),
        (remove, "tokenizer/tokenizer.json"),
        (add_auto_map, "tokenizer/tokenizer_config.json"),
    ],
)
def test_a_damaged_model_is_reported_before_any_stage_starts(damage, name, project, tiny_wan, tmp_path):
    folder = Path(shutil.copytree(tiny_wan["5b"], tmp_path / "torn"))
    sentence = damage(folder / name)
    project.models["tiny"] = {**project.models["tiny"], "path": str(folder)}
    del project.models["tiny"]["hub"]
    project.configure(one=RUN)
    stderr = project.run(*ONE_WORKER, fails=1)
    assert sentence in stderr
    assert not list(project.path("results").glob("*/steps/logs/*.log"))
