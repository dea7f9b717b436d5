"""Trainings as targets of snakemake: made when they are asked for, after those that they start from."""

import pytest
import yaml

from tests.conftest import TINY_TEXT2VIDEO


@pytest.fixture
def trainings(project):
    """Two trainings, the second from what the first leaves."""
    second = {name: value for name, value in TINY_TEXT2VIDEO.items() if name != "architecture"}
    second["start_from"] = "results/training/first/model"
    for name, options in (("first", TINY_TEXT2VIDEO), ("second", second)):
        project.path(f"{name}.yaml").write_text(yaml.safe_dump({"training": "text2video", **options}))
    config = {"models": {}, "runs": {}, "trainings": {"second": "second.yaml", "first": "first.yaml"}}
    project.path("config.yaml").write_text(yaml.safe_dump(config))
    return project


def test_a_training_comes_after_the_one_that_it_starts_from(trainings):
    trainings.run("--cores", 2, "training.second")
    assert trainings.path("results/training/second/model/unet/config.json").is_file()
    assert "Nothing to be done" in trainings.run("--cores", 2, "training.second")
    first, second = (
        trainings.path(f"results/training/{name}/training.json").stat().st_mtime for name in ("first", "second")
    )
    assert first < second


def test_without_being_asked_for_nothing_is_trained(trainings):
    assert "training." not in trainings.output("--cores", 2, "-n")
