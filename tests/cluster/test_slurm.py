"""The pipeline through a real Slurm, by the profile that is shipped."""

import pytest

from tests import zoo
from tests.workflow.conftest import TINY, Project, frame_count

CLIPS = ["a", "b", "c", "d"]
WORKERS = ("--resources", f"gpu={len(CLIPS)}")
SMALL = {"mem_mb": 2000, "runtime": 20}  # what tiny models need, so that four jobs fit this machine


@pytest.fixture
def project(models, profile, tmp_path):
    project = Project(tmp_path / "project", models)
    zoo.plain(project.folder, "a.mp4", frames=5, size=(64, 48))

    def configure(resources, **options):
        rows = [{"id": clip, "video": "a.mp4", "prompt": f"prompt of {clip}"} for clip in CLIPS]
        run = {"recipe": "v2v", "clips": rows, "model": "one-expert", "options": {**TINY, **options}}
        project.configure(film=run)
        text = project.path("config.yaml").read_text()
        project.path("config.yaml").write_text(text + f"resources: {resources}\n")

    project.use = configure
    project.arguments = ("--profile", profile, *WORKERS)
    return project


def asked_for(project, job):
    """What the job's log says of its devices."""
    (lease,) = [line for line in project.log("film", job) if line["event"] == "lease"]
    return lease["devices"]


def test_each_clip_is_made_on_a_device_of_its_own(slurm, project):
    project.use(dict.fromkeys(("extract_frames", "caption_vlm", "encode", "generate", "decode", "concat"), SMALL), steps=40)
    project.run(*project.arguments)
    assert [frame_count(project.path(f"results/film/{clip}.mp4")) for clip in CLIPS] == [5] * len(CLIPS)
    devices = [asked_for(project, f"generate.{number:03d}") for number in range(len(CLIPS))]
    assert all(len(device) == 1 for device in devices) and len(set(map(tuple, devices))) == len(CLIPS)
    assert {shard["model_loads"] for name, shard in project.shards("film").items() if "generate" in name} == {1}
    assert slurm.ask("squeue", "-h") == ""
