"""A run that is killed in the middle of a shard: the next run makes only the missing results."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from stages.runtime import artifacts
from tests import zoo
from tests.commands import stage
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count

pytestmark = pytest.mark.usefixtures("installed_programs")
CLIPS = [f"clip{number:02d}" for number in range(12)]
LATENTS = "results/night/steps/{}/latents.safetensors"


def kill_session(leader: int) -> None:
    """Kill every process of a session at once, like a power cut."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                members.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile
    for member in members:
        os.kill(member, signal.SIGKILL)


def finished_clips(project: Project) -> list[str]:
    """Clips that generate has finished, by its log."""
    log = project.path("results/night/steps/logs/night.generate.000.log")
    lines = log.read_text().splitlines() if log.exists() else []
    return re.findall(r'"item": "(clip\d\d)", "status": "made"', "\n".join(lines))


@pytest.fixture(scope="module")
def killed(project):
    """A project whose snakemake and stage were killed after a few of twelve clips, and the clips finished by then."""
    zoo.plain(project.folder, "a.mp4", frames=5, size=(64, 48))
    rows = [{"id": clip, "video": "a.mp4", "prompt": f"prompt of {clip}"} for clip in CLIPS]
    options = {**TINY, "steps": 60}
    project.configure(night={"recipe": "v2v", "clips": rows, "model": "one-expert", "options": options})
    process = project.start(*ONE_WORKER, start_new_session=True)
    deadline = time.monotonic() + 600
    while len(finished_clips(project)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    kill_session(process.pid)
    process.communicate()
    return project, finished_clips(project)


@pytest.fixture(scope="module")
def rerun(killed):
    project, _ = killed
    assert "--unlock" in project.run(*ONE_WORKER, fails=1)
    project.run(*ONE_WORKER, "--unlock")
    return project.run(*ONE_WORKER)


def test_a_killed_run_leaves_only_whole_results(killed):
    project, finished = killed
    assert 3 <= len(finished) < 12
    existing = [clip for clip in CLIPS if project.path(LATENTS.format(clip)).exists()]
    assert existing[: len(finished)] == finished and len(existing) <= len(finished) + 1
    for clip in existing:
        tensors = artifacts.read(project.path(LATENTS.format(clip)), ("latents",)).tensors()
        assert tensors["latents"].isfinite().all()


def test_the_rerun_makes_only_the_missing_results(killed, rerun):
    project, finished = killed
    (shard,) = [line for line in project.log("night", "generate.000") if line["event"] == "shard"]
    assert 12 - len(finished) - shard["items"] in (0, 1)  # killed between publishing an item and logging it
    assert shard["reused"] in (0, 1)  # killed between storing an item and publishing it
    expected = shard["made"] + 12 + 12  # decode, concat
    assert f"items: {expected} made, {shard['reused']} reused from the store, 0 failed" in rerun


def test_the_rerun_completes_all_films(killed, rerun):
    project, _ = killed
    assert {frame_count(project.path(f"results/night/{clip}.mp4")) for clip in CLIPS} == {5}


def test_results_equal_those_of_a_run_that_was_not_killed(killed, rerun, tmp_path, models):
    project, finished = killed
    for clip in (finished[0], CLIPS[len(finished)], CLIPS[-1]):
        encoded = project.path(f"results/night/steps/{clip}/encoded.safetensors")
        options = ("--model", models["one-expert"]["path"], "--dtype", "float32", "--steps", 60, "--seed", TINY["seed"])
        stage("generate", encoded, "--output", tmp_path / f"{clip}.safetensors", *options)
        alone = artifacts.read(tmp_path / f"{clip}.safetensors", ("latents",)).tensors()["latents"]
        inside = artifacts.read(project.path(LATENTS.format(clip)), ("latents",)).tensors()["latents"]
        assert (alone == inside).all()


def test_the_rerun_leaves_no_partial_files(killed, rerun):
    project, _ = killed
    left = [path for path in project.path("results").rglob("*") if ".tmp" in path.suffixes or path.name == "partial"]
    assert [path for path in left if path.is_file() or list(path.iterdir())] == []
    assert "Nothing to be done" in project.run(*ONE_WORKER)
