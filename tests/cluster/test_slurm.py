"""The pipeline through a real Slurm, by the profile that is shipped, and films made there and in containers.

All in one file, since a machine has one Slurm at a time.
"""

import json
import signal

import pytest

from benchmarks.shapes import declared_models
from stages.runtime.stages import STAGES
from tests import zoo
from tests.cluster import images, recipes
from tests.cluster import slurm as toy
from tests.commands import wait_for
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count
from tests.workflow.test_profiles import EXPECTED, settings

KNOWN = {"slurm": toy.obstacle(), "images": images.obstacle()}
THERE = " and ".join(name for name, obstacle in KNOWN.items() if not obstacle)
SMALL = dict.fromkeys(STAGES, {"mem_mb": 2000, "runtime": 20})  # what tiny models need, so that four jobs fit this machine


class SlurmProject(Project):
    """Films of one clip under several names, each a shard of its own."""

    def use(self, profile, clips, resources, **options):
        self.clips = clips
        zoo.plain(self.folder, "a.mp4", frames=5, size=(64, 48))
        rows = [{"id": clip, "video": "a.mp4", "prompt": f"prompt of {clip}"} for clip in clips]
        run = {"recipe": "v2v", "clips": rows, "model": "one-expert", "options": {**TINY, **options}}
        self.configure(resources=resources, film=run)
        self.arguments = ("--profile", profile, "--resources", f"gpu={len(clips)}")

    def lengths(self):
        return [frame_count(self.path(f"results/film/{clip}.mp4")) for clip in self.clips]

    def generates(self):
        log = self.path("results/film/steps/logs/film.generate.000.log")
        return log.is_file() and '"event": "lease"' in log.read_text()


def test_what_a_run_is_set_to(slurm):
    assert settings("--profile", "profiles/slurm") == EXPECTED


@pytest.fixture
def project(models, tmp_path):
    return SlurmProject(tmp_path / "project", models)


def test_each_clip_is_made_on_a_device_of_its_own(slurm, profile, project):
    project.use(profile, "abcd", SMALL, steps=40)
    project.run(*project.arguments)
    assert project.lengths() == [5] * 4
    leases = [line for n in range(4) for line in project.log("film", f"generate.{n:03d}") if line["event"] == "lease"]
    devices = [lease["devices"] for lease in leases]
    assert len(devices) == 4 and all(len(device) == 1 for device in devices) and len(set(map(tuple, devices))) == 4
    assert {shard["model_loads"] for name, shard in project.shards("film").items() if "generate" in name} == {1}
    assert slurm.ask("squeue", "-h") == ""


def test_a_job_that_is_killed_for_memory_is_tried_again_with_more(slurm, profile, project):
    project.use(profile, "a", {**SMALL, "generate": {"mem_mb": 320, "runtime": 20}})
    project.run(*project.arguments)
    assert project.lengths() == [5]
    asked = [line.split("|") for line in slurm.ask("squeue", "-h", "--states=all", "-o", "%k|%m|%T").splitlines()]
    tries = [(memory, state) for comment, memory, state in asked if "film.generate.000" in comment]
    assert tries and ("320M", "COMPLETED") not in tries and {"COMPLETED"} < {state for _, state in tries}


def test_a_run_that_is_cancelled_leaves_no_job_and_goes_on_later(slurm, profile, project):
    project.use(profile, "a", SMALL, steps=1000)
    running = project.start(*project.arguments)
    wait_for(project.generates, "no clip is being generated", 600)
    running.send_signal(signal.SIGINT)
    running.communicate()
    assert running.returncode == 1
    wait_for(lambda: slurm.ask("squeue", "-h") == "", "jobs are left in the queue", 300)
    assert not project.path("results/film/a.mp4").exists()
    project.run(*project.arguments)
    assert project.lengths() == [5]
    assert [shard["made"] for shard in project.shards("film").values()][-1] == 1


# -------------------------------------------------------------------------------------------------------------- films


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("plain"), declared_models())
    project.configure(**recipes.RUNS)
    project.run(*ONE_WORKER)
    return project


def test_every_recipe_makes_its_film(plain):
    made = {film: frame_count(plain.path(f"results/{film}.mp4"), size) for film, (_, size) in recipes.FILMS.items()}
    assert made == {film: count for film, (count, _) in recipes.FILMS.items()}


@pytest.mark.parametrize("where", ["slurm and images", "slurm", "images"])
def test_elsewhere_the_films_are_the_same_to_the_bit(where, plain, tmp_path, request):
    if where != THERE:
        pytest.skip(f"what can be had here: {THERE or 'neither slurm nor images'}")
    arguments = [*ONE_WORKER]
    if "slurm" in where:
        request.getfixturevalue("slurm")
        arguments = ["--profile", request.getfixturevalue("profile"), "--resources", "gpu=4"]
    if "images" in where:
        request.getfixturevalue("images")
        arguments += ["--sdm", "apptainer"]
    project = Project(tmp_path / "project", declared_models())
    project.configure(resources=dict.fromkeys(STAGES, {"mem_mb": 3000, "runtime": 20}), **recipes.RUNS)
    project.run(*arguments)
    for film in recipes.FILMS:
        assert project.path(f"results/{film}.mp4").read_bytes() == plain.path(f"results/{film}.mp4").read_bytes(), film
    if "images" in where:
        steps = json.dumps([project.read("v2v/0000.json"), project.read("look/0000.json")])
        assert [stage for stage in STAGES if f'"image": "{stage}.sif"' not in steps] == []
