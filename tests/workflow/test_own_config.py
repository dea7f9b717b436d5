"""A config of the user beside config.yaml: only its runs are planned, and only requested results are written."""

import re

import pytest
import yaml

from tests import zoo
from tests.workflow.conftest import TINY, Project


def test_a_config_of_the_user_plans_only_its_own_runs(tmp_path, models):
    project = Project(tmp_path, models)
    zoo.plain(tmp_path, "a.mp4", frames=5, size=(32, 32))
    run = {"recipe": "v2v", "clips": [{"video": "a.mp4", "prompt": "a"}], "model": "one-expert", "options": TINY}
    project.configure(demo=run, second=run)
    project.path("mine.yaml").write_text(yaml.safe_dump({"runs": {"mine": run}}))
    arguments = ("--cores", 1, "-n", "--quiet", "rules")
    assert runs_with_films(project.output(*arguments)) == {"demo", "second"}
    assert runs_with_films(project.output(*arguments, "--configfile", "mine.yaml")) == {"mine"}
    override = ("--config", "runs={second: {options: {seed: 8}}}")  # a part of a run of config.yaml
    assert runs_with_films(project.output(*arguments, *override)) == {"second"}


def test_a_config_of_the_user_decides_where_a_model_of_config_yaml_is(tmp_path, models):
    """A model that config.yaml takes from the hub lies in a folder here; its other keys stay."""
    published = {**models["one-expert"], "hub": "us/one"}
    del published["path"]
    project = Project(tmp_path, {"one": published})
    run = {"recipe": "text2video", "clips": [{"id": "a", "prompt": "a"}], "model": "one", "options": {"size": "32*32"}}
    mine = {"models": {"one": {"path": models["one-expert"]["path"]}}, "runs": {"mine": run, "second": run}}
    project.configure(demo=run)
    project.path("mine.yaml").write_text(yaml.safe_dump(mine))
    project.run("mine.encode", "--cores", 1, "--configfile", "mine.yaml")
    assert project.read("weights/one.json")["path"] == models["one-expert"]["path"]
    assert not project.path("results/second").exists()


def test_a_run_given_as_a_target_writes_no_folder_of_another(tmp_path, models):
    project = Project(tmp_path, models)
    zoo.plain(tmp_path, "a.mp4", frames=5, size=(32, 32))
    run = {"recipe": "v2v", "clips": [{"video": "a.mp4", "prompt": "a"}], "model": "one-expert", "options": TINY}
    project.configure(demo=run, second=run)
    summary = project.run("demo.extract_frames", "--cores", 1)
    assert "items: 1 made" in summary
    assert {path.name for path in project.path("results").iterdir()} == {"demo", "store", ".lock"}


def runs_with_films(plan: str) -> set[str]:
    """The runs with films in the output of a dry run."""
    return set(re.findall(r"(\w+)\.concat\.000", plan))


def test_the_summary_has_the_warnings_of_plan_and_stages(tmp_path, models):
    project = Project(tmp_path, models)
    zoo.plain(tmp_path, "a.mp4", frames=5, size=(32, 32))
    clips = [{"video": "a.mp4", "prompt": "long " * 600}, {"video": "gone.mp4", "prompt": "b"}]
    project.configure(demo={"recipe": "v2v", "clips": clips, "model": "one-expert", "options": TINY})
    missing = "1 of 2 clips of run demo will fail: no file gone.mp4"
    assert f"warning: {missing}" in project.run("--cores", 1, "-n")
    summary = project.run("--cores", 1, fails=1).partition("items: ")[2]
    _, _, warnings = summary.partition("item or file")
    assert missing in warnings and re.search(r"^demo/a +encode .*are cut off", warnings, re.M)


@pytest.mark.parametrize(
    ("devices", "limits", "sentence"),
    [
        ("", ("gpu=1",), "no GPU is visible on this machine: models run on the CPU"),
        ("2", (), "2 GPUs are visible: jobs share them by lease; --resources gpu=2 runs no more jobs than that"),
        ("2", ("gpu=8",), "--resources gpu=8, and 2 GPUs are visible: the other jobs wait until one is free"),
        ("2", ("gpu=2",), None),
    ],
)
def test_a_line_states_the_gpus_that_the_jobs_will_have(tmp_path, models, monkeypatch, devices, limits, sentence):
    project = Project(tmp_path, models)
    zoo.plain(tmp_path, "a.mp4", frames=5, size=(32, 32))
    clips = [{"video": "a.mp4", "prompt": "a"}]
    project.configure(demo={"recipe": "v2v", "clips": clips, "model": "one-expert", "options": TINY})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("KINEMAKE_GPUS", devices)
    arguments = ("--resources", *limits) if limits else ()
    lines = project.run("--cores", 2, "-n", *arguments).splitlines()
    assert [line for line in lines if "GPU" in line] == ([sentence] if sentence else [])
