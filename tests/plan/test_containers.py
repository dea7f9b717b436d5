"""A container sees what its job reads and writes, and no more: by what Apptainer is told in the environment."""

import os

import pytest

from stages import plan
from stages.plan import containers


@pytest.fixture
def binds(config, tmp_path, monkeypatch):
    """path -> ro or rw, as Apptainer is told for a config; the work is in `work`."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(containers, "TEMPORARY", ())  # where these tests live
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("KINEMAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("APPTAINER_BIND", raising=False)

    def of(**changes):
        told = plan.load({**config, **changes}, 1).container_environment()
        assert told["HF_HOME"] == str(tmp_path / "hub") and told["KINEMAKE_CACHE"] == str(tmp_path / "cache")
        found = {}
        for text in told["APPTAINER_BIND"].split(","):
            source, target, mode = text.split(":")
            assert source == target and os.path.exists(source)
            found[source.removeprefix(f"{tmp_path}/")] = mode
        return found

    return of


def clip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return {"demo": {"recipe": "v2v", "clips": [{"video": str(path), "prompt": "a"}], "model": "small"}}


def test_the_hub_is_read_and_the_cache_of_digests_written(binds):
    assert binds() == {"hub": "ro", "cache": "rw"}


def test_folders_of_clips_and_weights_are_read_only(binds, config, tmp_path):
    weights = tmp_path / "work/models/small"
    weights.mkdir(parents=True)
    models = {**config["models"], "small": {"family": "wan", "variant": "5b", "path": "models/small"}}
    found = binds(models=models, runs=clip(tmp_path / "data/here/a.mp4"))
    assert found == {"hub": "ro", "cache": "rw", "data/here": "ro", "work/models/small": "ro"}


def test_what_links_lead_to_is_seen_too(binds, tmp_path):
    there = tmp_path / "disk/real.mp4"
    there.parent.mkdir()
    there.touch()
    (tmp_path / "work/a.mp4").symlink_to(there)
    runs = {"demo": {"recipe": "v2v", "clips": [{"video": "a.mp4", "prompt": "a"}], "model": "small"}}
    assert binds(runs=runs)["disk"] == "ro"


def test_a_clip_beside_the_work_does_not_make_the_work_read_only(binds, tmp_path):
    found = binds(runs=clip(tmp_path / "a.mp4"))
    assert found["a.mp4"] == "ro" and str(tmp_path) not in found


def test_results_outside_the_work_are_written(binds, tmp_path):
    assert binds(results=str(tmp_path / "scratch"))["scratch/demo"] == "rw"


def test_a_comma_in_a_name_is_no_separator():
    assert containers.bind("/data/a, b:c", "ro") == r"/data/a\, b\:c:/data/a\, b\:c:ro"


def test_no_network_and_what_a_site_says_is_kept(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    told = plan.load(config, 1).container_environment()
    assert (told["APPTAINER_NETWORK"], told["APPTAINER_NV"]) == ("none", "1")
    monkeypatch.setenv("APPTAINER_BIND", "/scratch")
    monkeypatch.setenv("APPTAINER_NETWORK", "bridge")
    told = plan.load(config, 1).container_environment()
    assert told["APPTAINER_BIND"].startswith("/scratch,") and told["APPTAINER_NETWORK"] == "bridge"
