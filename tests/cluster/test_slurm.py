"""The pipeline on a real Slurm with the shipped profile, and films made there and in containers.

All tests are in one file, because a machine has one Slurm at a time.
"""

import json
import signal
from itertools import islice

import cv2
import pytest

from examples.shipped import declared_models
from stages.families.fresco.options import CONTROLS
from stages.media.read import frames
from stages.media.write import VideoWriter
from stages.runtime.stages import STAGES
from tests import zoo
from tests.cluster import images, recipes
from tests.cluster import slurm as toy
from tests.commands import wait_for
from tests.workflow.conftest import INSTALLED, ONE_WORKER, TINY, Project, finish, frame_count
from tests.workflow.test_profiles import EXPECTED, parsed_settings

OBSTACLES = {"slurm": toy.obstacle(), "images": images.obstacle()}
AVAILABLE = " and ".join(name for name, obstacle in OBSTACLES.items() if not obstacle)
SMALL = dict.fromkeys(
    STAGES, {"mem_mb": 2000, "runtime": 20, "cores": 1}
)  # enough for tiny models, so that four jobs fit on this machine


class SlurmProject(Project):
    """A project with films of one clip under several names, each a shard of its own."""

    def use(self, profile, clips, resources, **options):
        self.clips = clips
        zoo.plain(self.folder, "a.mp4", frames=5, size=(64, 48))
        rows = [{"id": clip, "video": "a.mp4", "prompt": f"prompt of {clip}"} for clip in clips]
        run = {"recipe": "v2v", "clips": rows, "model": "one-expert", "options": {**TINY, **options}}
        self.configure(resources=resources, film=run)
        self.arguments = ("--profile", profile, "--resources", f"gpu={len(clips)}")

    def lengths(self):
        return [frame_count(self.path(f"results/film/{clip}.mp4")) for clip in self.clips]

    def status(self):
        """The lines of `status` about the run."""
        command = ("-P", "-m", "stages.status", "results/film")
        return finish(self.start(*command, program="python"))[0].splitlines()

    def generates(self):
        log = self.path("results/film/steps/logs/film.generate.000.log")
        return log.is_file() and '"event": "lease"' in log.read_text()


def test_the_default_profile_applies_beside_the_slurm_profile(slurm):
    assert parsed_settings("--profile", "profiles/slurm") == EXPECTED


@pytest.fixture
def project(models, tmp_path):
    return SlurmProject(tmp_path / "project", models)


def test_slurm_runs_each_clip_on_a_device_of_its_own(slurm, profile, project):
    project.use(profile, "abcd", SMALL, steps=40)
    project.run(*project.arguments)
    assert project.lengths() == [5] * 4
    leases = [line for n in range(4) for line in project.log("film", f"generate.{n:03d}") if line["event"] == "lease"]
    devices = [lease["devices"] for lease in leases]
    assert len(devices) == 4 and all(len(device) == 1 for device in devices) and len(set(map(tuple, devices))) == 4
    assert {shard["model_loads"] for name, shard in project.shards("film").items() if "generate" in name} == {1}
    assert slurm.ask("squeue", "-h") == ""


def test_a_chain_is_one_slurm_job_and_its_film_another(slurm, profile, project):
    zoo.plain(project.folder, "a.mp4", frames=5, size=(64, 48))
    clips = [{"id": "a", "video": "a.mp4", "prompt": "a kite"}]
    options = {**TINY, "fit": "crop", "links": 3}
    project.configure(resources=SMALL, links={"recipe": "chain", "clips": clips, "model": "one-expert", "options": options})
    project.run("--profile", profile, "--resources", "gpu=1")
    assert frame_count(project.path("results/links/a.mp4")) == 5 + 2 * 4
    rules = slurm.ask("squeue", "-h", "--states=all", "-o", "%k").splitlines()
    assert sorted(rule.partition("_wildcards")[0] for rule in rules if "links." in rule) == [
        "rule_links.concat.000",
        "rule_links.fused.000",
    ]


def test_a_slurm_job_killed_for_memory_is_retried_with_more(slurm, profile, project, monkeypatch):
    monkeypatch.setattr(Project, "programs", INSTALLED)  # whose processes are those of the job, for Slurm
    project.use(profile, "a", {**SMALL, "generate": {"mem_mb": 450, "runtime": 20}})
    project.run(*project.arguments)
    assert project.lengths() == [5]
    lines = slurm.ask("squeue", "-h", "--states=all", "-o", "%m|%C|%T").splitlines()  # of all tests
    attempts = [line.split("|") for line in lines if line.partition("|")[0] in ("450M", "900M", "1350M")]
    assert {cores for _, cores, _ in attempts} == {"4"}
    assert ["450M", "4", "COMPLETED"] not in attempts and {"COMPLETED"} < {state for *_, state in attempts}


def test_a_cancelled_slurm_run_leaves_no_job_and_can_be_resumed(slurm, profile, project):
    project.use(profile, "a", SMALL, steps=1000)
    running = project.start(*project.arguments)
    wait_for(project.generates, "no clip is being generated", 600)
    assert project.status()[0] == "results/film: 0 of 1 films, running"
    running.send_signal(signal.SIGINT)
    running.communicate()
    assert running.returncode == 1
    wait_for(lambda: slurm.ask("squeue", "-h") == "", "jobs are left in the queue", 300)
    assert not project.path("results/film/a.mp4").exists()
    project.run(*project.arguments)
    assert project.lengths() == [5]
    assert project.status()[0] == "results/film: 1 of 1 films, no run is at work"


# -------------------------------------------------------------------------------------------------------------- films


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("plain"), declared_models())
    project.configure(**recipes.RUNS)
    project.run(*ONE_WORKER)
    return project


def test_every_recipe_makes_its_film(reference):
    counts = {film: frame_count(reference.path(f"results/{film}.mp4"), size) for film, (_, size) in recipes.FILMS.items()}
    assert counts == {film: count for film, (count, _) in recipes.FILMS.items()}


@pytest.fixture(params=["slurm and images", "slurm", "images"])
def place(request):
    """Slurm, images or both, as available on this machine. The other combinations are skipped."""
    if request.param != AVAILABLE:
        pytest.skip(f"{request.param}: what can be had here is {AVAILABLE or 'neither slurm nor images'}")
    return request.param


@pytest.fixture
def make_there(place, tmp_path, request):
    """A function that makes runs in that place."""
    arguments = [*ONE_WORKER]
    if "slurm" in place:
        request.getfixturevalue("slurm")
        arguments = ["--profile", request.getfixturevalue("profile"), "--resources", "gpu=4"]
    if "images" in place:
        request.getfixturevalue("images")
        arguments += ["--sdm", "apptainer"]

    def make(models, runs):
        project = Project(tmp_path / "project", models)
        project.configure(resources=dict.fromkeys(STAGES, {"mem_mb": 3000, "runtime": 20, "cores": 1}), **runs)
        project.run(*arguments)
        return project

    return make


def test_films_made_by_slurm_and_in_images_are_identical(place, reference, make_there):
    project = make_there(declared_models(), recipes.RUNS)
    for film in recipes.FILMS:
        assert project.path(f"results/{film}.mp4").read_bytes() == reference.path(f"results/{film}.mp4").read_bytes(), film
    if "images" in place:
        steps = json.dumps([project.read("v2v/0000.json"), project.read("look/0000.json")])
        assert [stage for stage in STAGES if f'"image": "{stage}.sif"' not in steps] == ["pick", "score"]
        scored = project.read("v2v/0000.scores.json")  # by the job that makes the film
        assert scored["fields"]["figures"]["health.faulty_share"] == 0 and '"image": "concat.sif"' in json.dumps(scored)


@pytest.mark.parametrize("place", ["slurm and images"], indirect=True)
def test_fresco_translates_a_real_clip_by_slurm_and_in_images(make_there, tiny_sd, tmp_path):
    with VideoWriter(tmp_path / "turn.mp4", 256, 256, 25) as video:
        for frame in islice(frames(zoo.real_clip("car-turn.mp4")), 32):
            video.write(cv2.resize(frame.rgb, (256, 256), interpolation=cv2.INTER_AREA))
    clip = {"video": str(tmp_path / "turn.mp4"), "prompt": "a toy car turns in the snow"}
    clips = [{**clip, "id": control, "controlnet_type": control} for control in CONTROLS]
    few = {"seed": 1, "size": "256*256", "num_inference_steps": 3, "num_warmup_steps": 1}
    sd = {"family": "fresco", "path": str(tiny_sd), "dtype": "float32"}
    project = make_there({"sd": sd}, {"turn": {"recipe": "fresco", "clips": clips, "model": "sd", "options": few}})
    counts = {control: frame_count(project.path(f"results/turn/{control}.mp4"), (256, 256)) for control in CONTROLS}
    assert counts == dict.fromkeys(CONTROLS, 32)
