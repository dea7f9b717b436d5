"""The pipeline through a real Slurm, by the profile that is shipped, and films made there and in containers.

All in one file, since a machine has one Slurm at a time.
"""

import json
import signal
from itertools import islice

import cv2
import pytest

from benchmarks.shapes import declared_models
from stages.media.read import frames
from stages.media.write import VideoWriter
from stages.models.fresco.options import CONTROLS
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


@pytest.fixture(params=["slurm and images", "slurm", "images"])
def where(request):
    """Through Slurm and in images, as far as these can be had here: the other places are skipped."""
    if request.param != THERE:
        pytest.skip(f"{request.param}: what can be had here is {THERE or 'neither slurm nor images'}")
    return request.param


@pytest.fixture
def elsewhere(where, tmp_path, request):
    """Makes runs there."""
    arguments = [*ONE_WORKER]
    if "slurm" in where:
        request.getfixturevalue("slurm")
        arguments = ["--profile", request.getfixturevalue("profile"), "--resources", "gpu=4"]
    if "images" in where:
        request.getfixturevalue("images")
        arguments += ["--sdm", "apptainer"]

    def make(models, runs):
        project = Project(tmp_path / "project", models)
        project.configure(resources=dict.fromkeys(STAGES, {"mem_mb": 3000, "runtime": 20}), **runs)
        project.run(*arguments)
        return project

    return make


def test_elsewhere_the_films_are_the_same_to_the_bit(where, plain, elsewhere):
    project = elsewhere(declared_models(), recipes.RUNS)
    for film in recipes.FILMS:
        assert project.path(f"results/{film}.mp4").read_bytes() == plain.path(f"results/{film}.mp4").read_bytes(), film
    if "images" in where:
        steps = json.dumps([project.read("v2v/0000.json"), project.read("look/0000.json")])
        assert [stage for stage in STAGES if f'"image": "{stage}.sif"' not in steps] == []


@pytest.mark.parametrize("where", ["slurm and images"], indirect=True)
def test_elsewhere_a_real_clip_is_translated_by_every_control(elsewhere, tiny_sd, tmp_path):
    with VideoWriter(tmp_path / "turn.mp4", 256, 256, 25) as video:
        for frame in islice(frames(zoo.real_clip("car-turn.mp4")), 32):
            video.write(cv2.resize(frame.rgb, (256, 256), interpolation=cv2.INTER_AREA))
    clip = {"video": str(tmp_path / "turn.mp4"), "prompt": "a toy car turns in the snow"}
    clips = [{**clip, "id": control, "controlnet_type": control} for control in CONTROLS]
    few = {"seed": 1, "size": "256*256", "num_inference_steps": 3, "num_warmup_steps": 1}
    sd = {"family": "fresco", "path": str(tiny_sd), "dtype": "float32"}
    project = elsewhere({"sd": sd}, {"turn": {"recipe": "fresco", "clips": clips, "model": "sd", "options": few}})
    made = {control: frame_count(project.path(f"results/turn/{control}.mp4"), (256, 256)) for control in CONTROLS}
    assert made == dict.fromkeys(CONTROLS, 32)
