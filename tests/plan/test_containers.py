"""A container sees only what its job reads and writes, by the environment variables of Apptainer."""

import os

import pytest

from stages import plan
from stages.plan import containers


@pytest.fixture
def binds(config, tmp_path, monkeypatch):
    """A function that plans the config in the folder `work` and returns the binds for Apptainer: path -> ro or rw."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(containers, "TEMPORARY", ())  # these tests run in a temporary folder
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("KINEMAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("APPTAINER_BIND", raising=False)

    def find_binds(**changes):
        environment = plan.load({**config, **changes}, 1).container_environment()
        assert environment["HF_HOME"] == str(tmp_path / "hub") and environment["KINEMAKE_CACHE"] == str(tmp_path / "cache")
        modes = {}
        for text in environment["APPTAINER_BIND"].split(","):
            source, target, mode = text.split(":")
            assert source == target and os.path.exists(source)
            modes[source.removeprefix(f"{tmp_path}/")] = mode
        return modes

    return find_binds


def run_of(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return {"demo": {"recipe": "v2v", "clips": [{"video": str(path), "prompt": "a"}], "model": "small"}}


def test_containers_read_the_hub_and_write_the_digest_cache(binds):
    assert binds() == {"hub": "ro", "cache": "rw"}


def test_containers_bind_folders_of_clips_and_weights_read_only(binds, config, tmp_path):
    weights = tmp_path / "work/models/small"
    weights.mkdir(parents=True)
    models = {**config["models"], "small": {"family": "wan", "variant": "5b", "path": "models/small"}}
    modes = binds(models=models, runs=run_of(tmp_path / "data/here/a.mp4"))
    assert modes == {"hub": "ro", "cache": "rw", "data/here": "ro", "work/models/small": "ro"}


def test_containers_bind_the_targets_of_links(binds, tmp_path):
    target = tmp_path / "disk/real.mp4"
    target.parent.mkdir()
    target.touch()
    (tmp_path / "work/a.mp4").symlink_to(target)
    runs = {"demo": {"recipe": "v2v", "clips": [{"video": "a.mp4", "prompt": "a"}], "model": "small"}}
    assert binds(runs=runs)["disk"] == "ro"


def test_a_clip_beside_the_working_folder_is_bound_alone(binds, tmp_path):
    modes = binds(runs=run_of(tmp_path / "a.mp4"))
    assert modes["a.mp4"] == "ro" and str(tmp_path) not in modes


def test_containers_bind_results_outside_the_working_folder_writable(binds, tmp_path):
    assert binds(results=str(tmp_path / "scratch"))["scratch/demo"] == "rw"


def test_bind_escapes_commas_and_colons():
    assert containers.bind("/data/a, b:c", "ro") == r"/data/a\, b\:c:/data/a\, b\:c:ro"


def test_containers_have_no_network_and_keep_the_settings_of_a_site(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    environment = plan.load(config, 1).container_environment()
    assert (environment["APPTAINER_NETWORK"], environment["APPTAINER_NV"]) == ("none", "1")
    monkeypatch.setenv("APPTAINER_BIND", "/scratch")
    monkeypatch.setenv("APPTAINER_NETWORK", "bridge")
    environment = plan.load(config, 1).container_environment()
    assert environment["APPTAINER_BIND"].startswith("/scratch,") and environment["APPTAINER_NETWORK"] == "bridge"
