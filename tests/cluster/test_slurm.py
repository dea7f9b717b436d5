"""The pipeline through a real Slurm, by the profile that is shipped."""

import signal

import pytest

from stages.runtime.stages import STAGES
from tests import zoo
from tests.commands import wait_for
from tests.workflow.conftest import TINY, Project, frame_count
from tests.workflow.test_profiles import EXPECTED, settings

pytestmark = pytest.mark.xdist_group("slurm")  # one of them at a time on a machine
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
