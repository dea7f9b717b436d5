"""Trainings as targets of snakemake: each runs only as a target, after the training that it starts from."""

import json
import re

import pytest
import yaml

from stages.runtime.model import Model
from tests.conftest import TINY_TEXT2VIDEO
from tests.workflow.conftest import Project, finish


@pytest.fixture
def trainings(tmp_path):
    """A project with two trainings, the second of which starts from the model of the first."""
    project = Project(tmp_path / "project", {})
    second = {name: value for name, value in TINY_TEXT2VIDEO.items() if name != "architecture"}
    second["start_from"] = "results/training/first/model"
    for name, options in (("first", TINY_TEXT2VIDEO), ("second", second)):
        project.path(f"{name}.yaml").write_text(yaml.safe_dump({"training": "text2video", **options}))
    config = {"models": {}, "runs": {}, "trainings": {"second": "second.yaml", "first": "first.yaml"}}
    project.path("config.yaml").write_text(yaml.safe_dump(config))
    return project


def test_a_training_runs_after_the_one_that_it_starts_from(trainings):
    trainings.run("--cores", 2, "training.second")
    assert trainings.path("results/training/second/model/unet/config.json").is_file()
    assert "Nothing to be done" in trainings.run("--cores", 2, "training.second")
    first, second = (
        trainings.path(f"results/training/{name}/training.json").stat().st_mtime for name in ("first", "second")
    )
    assert first < second


def test_progress_and_the_place_of_the_model_are_told(trainings):
    out, said = finish(trainings.start("--cores", 2, "training.first"))
    folder = "results/training/first"
    log = trainings.path(f"{folder}/training.log").read_text().splitlines()
    steps = [json.loads(line) for line in log if line.startswith('{"event": "progress"')]
    assert [(step["done"], step["of"]) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert re.findall(rf"{folder}: step (\d) of 4, loss \d+\.\d+", out) == ["1", "2", "3", "4"]
    assert f"Training first: the log is {folder}/training.log, the model will be in {folder}/model" in said
    assert f"training first: its model is in {folder}/model" in said
    assert "its model is in" not in trainings.run("--cores", 2, "training.first")  # which does nothing


def test_failed_training_is_in_the_table_at_the_end(trainings):
    options = yaml.safe_load(trainings.path("first.yaml").read_text())
    trainings.path("first.yaml").write_text(yaml.safe_dump({**options, "frame_size": 18}))
    said = trainings.run("--cores", 2, "training.first", fails=1)
    assert "training.first  train  frame_size is 18: this architecture needs a multiple of 4" in said


@pytest.mark.parametrize(
    "option, sentence", [("batch_size", "option batch_size is 0"), ("schedule", "option schedule is 0")]
)
def test_training_with_a_wrong_option_is_told_while_planning(option, sentence, trainings):
    options = yaml.safe_load(trainings.path("first.yaml").read_text())
    trainings.path("first.yaml").write_text(yaml.safe_dump({**options, option: 0}))
    said = trainings.run("--cores", 2, "training.first", fails=1)
    assert f"training first names first.yaml ({sentence}" in said
    assert not trainings.path("results/training/first/training.log").exists()


@pytest.fixture
def run_after_training(trainings):
    """A run by the model of the second training."""
    config = yaml.safe_load(trainings.path("config.yaml").read_text())
    config["models"] = {"mine": {"family": "text2video", "path": str(trainings.path("results/training/second/model"))}}
    clips = [{"id": "ring", "prompt": "a red ring"}]
    config["runs"] = {"films": {"recipe": "text2video", "clips": clips, "model": "mine", "options": {"seed": 1}}}
    trainings.path("config.yaml").write_text(yaml.safe_dump(config))
    return trainings


def film_options(project):
    provenance = project.read("films/ring.json")["provenance"]
    return {record["stage"]: record["options"] for record in provenance}["generate"]


def test_a_run_trains_its_model_first_and_again_when_the_training_is_to_go_on(run_after_training):
    project = run_after_training
    project.run("--cores", 2, "films")
    assert project.path("results/training/first/training.json").is_file()
    settings = json.loads(project.path("results/training/second/model/kinemake.json").read_text())
    used = film_options(project)
    assert used["dtype"] == settings["dtype"] == "float32"
    assert {name: used[name] for name in settings["options"]} == settings["options"]
    assert used["num_inference_steps"] == 2 and used["sampler"] == "ddim"
    assert "Nothing to be done" in project.run("--cores", 2, "films")
    options = yaml.safe_load(project.path("second.yaml").read_text())
    project.path("second.yaml").write_text(yaml.safe_dump({**options, "max_steps": 8, "learning_rate": 1e-2}))
    project.run("--cores", 2, "films")
    assert json.loads(project.path("results/training/second/training.json").read_text())["steps"] == 8
    model = Model("mine", family="text2video", path=str(project.path("results/training/second/model")))
    assert project.read("films/ring.json")["provenance"][1]["weights"] == model.digest(("unet/*", "scheduler/*"))
    assert "Nothing to be done" in project.run("--cores", 2, "films")
    project.path("results/training").rename(project.path("gone"))  # what is finished needs no weights any more
    assert "Nothing to be done" in project.run("--cores", 2, "films")


def test_a_training_runs_only_as_a_target(trainings):
    assert "training." not in trainings.output("--cores", 2, "-n")
