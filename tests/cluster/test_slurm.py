"""The pipeline through a real Slurm, by the profile that is shipped."""

import signal

import pytest

from benchmarks.shapes import declared_models
from tests import zoo
from tests.cluster.slurm import wait_for
from tests.tiny.dynamicrafter import make
from tests.workflow.conftest import ROOT, TINY, Project, frame_count
from tests.workflow.test_profiles import EXPECTED, settings

STAGES = ("extract_frames", "caption_vlm", "encode", "generate", "decode", "concat")
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


def test_the_recipes_go_through(slurm, profile, tmp_path):
    """With the shipped models, and a tiny one of the family that has none."""
    weights = make(tmp_path / "crafter")
    crafter = {"family": "dynamicrafter", "variant": "256", "path": str(weights), "sizes": ["64*64"], "dtype": "float32"}
    project = Project(tmp_path / "demo", declared_models() | {"crafter": crafter})
    picture = {"image": str(ROOT / "examples/shapes/pictures/0000.png"), "prompt": "a ring"}
    clip, told = str(ROOT / "examples/shapes/videos/0000.mp4"), {"captioner": "shapes-internvl"}
    turn = {"video": clip, "prompt2": "an orange ring moving left quickly on a gray background", "num_samples": 2}
    words = [{"id": "a", "prompt": "a red ring moving left slowly on a black background"}]
    short = {"frame_num": 9, "steps": 3, "seed": 1}
    project.configure(
        resources=dict.fromkeys(STAGES, {"mem_mb": 3000, "runtime": 20}),
        v2v={"recipe": "v2v", "clips": [{"video": clip}], "model": "shapes-wan-5b", **told, "options": short},
        chain={
            "recipe": "chain",
            "clips": [{"video": clip}],
            "model": "shapes-wan-14b",
            **told,
            "options": {**short, "links": 2},
        },
        turning={
            **{"recipe": "longlive", "clips": [turn], "model": "shapes-longlive", **told},
            "options": {"num_output_frames": 6, "seed": 1},
        },
        words={"recipe": "text2video", "clips": words, "model": "shapes-text2video", "options": {"steps": 2, "seed": 1}},
        picture={
            **{"recipe": "dynamicrafter", "clips": [picture], "model": "crafter"},
            "options": {"size": "64*64", "num_inference_steps": 2},
        },
    )
    project.run("--profile", profile, "--resources", "gpu=4")
    films = {"v2v/0000": 9, "chain/0000": 17, "turning/0000_0": 21, "turning/0000_1": 21, "picture/0000": 16}
    made = {film: frame_count(project.path(f"results/{film}.mp4"), (64, 64)) for film in films}
    assert made == films
    assert frame_count(project.path("results/words/a.mp4"), (32, 32)) == 16


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
    wait_for(project.generates, "no clip is being generated", 240)
    running.send_signal(signal.SIGINT)
    running.communicate()
    assert running.returncode == 1
    wait_for(lambda: slurm.ask("squeue", "-h") == "", "jobs are left in the queue")
    assert not project.path("results/film/a.mp4").exists()
    project.run(*project.arguments)
    assert project.lengths() == [5]
    assert [shard["made"] for shard in project.shards("film").values()][-1] == 1
