"""Films of every recipe, made through a real Slurm and in containers: those that are made without, to the bit."""

import json

import pytest

from stages.runtime.stages import STAGES
from tests.cluster import images, recipes, slurm
from tests.workflow.conftest import ONE_WORKER, Project, frame_count

pytestmark = pytest.mark.xdist_group("slurm")  # one of them at a time on a machine
KNOWN = {"slurm": slurm.obstacle(), "images": images.obstacle()}
THERE = " and ".join(name for name, obstacle in KNOWN.items() if not obstacle)
SMALL = dict.fromkeys(STAGES, {"mem_mb": 3000, "runtime": 20})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return recipes.models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("plain"), models)
    project.configure(**recipes.RUNS)
    project.run(*ONE_WORKER)
    return project


def test_every_recipe_makes_its_film(plain):
    made = {film: frame_count(plain.path(f"results/{film}.mp4"), size) for film, (_, size) in recipes.FILMS.items()}
    assert made == {film: count for film, (count, _) in recipes.FILMS.items()}


@pytest.mark.parametrize("where", ["slurm and images", "slurm", "images"])
def test_elsewhere_the_films_are_the_same_to_the_bit(where, plain, models, tmp_path, request):
    if where != THERE:
        pytest.skip(f"what can be had here: {THERE or 'neither slurm nor images'}")
    arguments = [*ONE_WORKER]
    if "slurm" in where:
        request.getfixturevalue("slurm")
        arguments = ["--profile", request.getfixturevalue("profile"), "--resources", "gpu=4"]
    if "images" in where:
        request.getfixturevalue("images")
        arguments += ["--sdm", "apptainer"]
    project = Project(tmp_path / "project", models)
    project.configure(resources=SMALL, **recipes.RUNS)
    project.run(*arguments)
    for film in recipes.FILMS:
        assert project.path(f"results/{film}.mp4").read_bytes() == plain.path(f"results/{film}.mp4").read_bytes(), film
    if "images" in where:
        steps = json.dumps([project.read("v2v/0000.json"), project.read("look/0000.json")])
        assert [stage for stage in STAGES if f'"image": "{stage}.sif"' not in steps] == []
