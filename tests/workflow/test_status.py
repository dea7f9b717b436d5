"""The command `status` on runs that work, have failed, were killed, and are done: its numbers are those of the files."""

import shutil
import signal
import time

import pytest

from stages.plan.status import store_bytes
from stages.runtime.errors import format_bytes
from stages.runtime.store import Store
from tests import zoo
from tests.commands import wait_for
from tests.workflow.conftest import TINY, Project, finish

STAGES = ("extract_frames", "encode", "generate", "decode", "concat", "score")


@pytest.fixture
def project(toy_project):
    """A project with three clips, of which the video of the last is no video."""
    toy_project.path("c.mp4").write_bytes(b"no video")
    return toy_project


def configure(project, names, **options):
    clips = [{"id": name, "video": f"{name}.mp4", "num_frames": 3 + n} for n, name in enumerate(names)]
    project.configure(demo={"recipe": "toy", "clips": clips, "model": "grey", "options": options, "scores": ["health"]})


def status(project, *arguments):
    """The lines of the command, and its table as numbers by stage and state."""
    command = ("-P", "-m", "stages.status", "results/demo", *arguments)
    lines = finish(project.start(*command, program="python"))[0].splitlines()
    assert all(len(line) < 80 for line in lines)
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[0] in STAGES}
    states = ("done", "running", "failed", "waiting")
    return lines, {stage: dict(zip(states, map(int, row), strict=True)) for stage, row in rows.items()}


def test_the_status_of_a_run_that_failed_and_of_one_that_is_done(project):
    configure(project, "abc")
    project.run("--cores", 2, "--keep-going", fails=1)
    lines, counts = status(project)
    assert lines[0] == "results/demo: 2 of 3 films, no run is at work"
    assert counts == {stage: {"done": 2, "running": 0, "failed": 1, "waiting": 0} for stage in STAGES}
    (failure,) = (line for line in lines if line.startswith("failed:"))  # that of the later stages came with their input
    assert failure.startswith("failed: steps/c/frames.json: c.mp4 is not a readable")
    both = ("-P", "-m", "stages.status", "results/none", "results/demo")
    output, error = finish(project.start(*both, program="python"), fails=1)
    assert output.splitlines() == lines and error.startswith("error: ") and "none is not the folder of a run" in error
    configure(project, "ab")
    project.run("--cores", 2)
    lines, counts = status(project)
    assert lines[0] == "results/demo: 2 of 2 films, no run is at work"
    assert counts == {stage: {"done": 2, "running": 0, "failed": 0, "waiting": 0} for stage in STAGES}
    assert not any(line.startswith("failed:") for line in lines)


def test_the_status_of_a_run_at_work_and_after_kill_9(project, installed_programs):
    names = [f"clip{n}" for n in range(12)]  # work for half a minute, so that a busy machine finds the stage at it
    clips = [{"id": name, "video": "a.mp4", "num_frames": 3 + n} for n, name in enumerate(names)]
    project.configure(demo={"recipe": "toy", "clips": clips, "model": "grey", "options": {"seconds": 3}})
    process = project.start("--cores", 1)

    def generated():
        return len(list(project.path("results").rglob("l.safetensors")))

    while not (before := generated()):
        time.sleep(0.1)
    lines, counts = status(project)
    assert lines[0] == f"results/demo: 0 of {len(names)} films, running"
    assert counts["encode"] == {"done": len(names), "running": 0, "failed": 0, "waiting": 0}
    assert before - 1 <= counts["generate"]["done"] <= generated()
    assert counts["generate"]["done"] + counts["generate"]["running"] + counts["generate"]["waiting"] == len(names)
    assert any(line.startswith("demo.generate.000: generate after ") for line in lines)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for log in project.path("results/demo/steps/logs").glob("*.log"):
        while time.time() - log.stat().st_mtime < 4:  # the stage ends its item, and none of the run is left
            time.sleep(0.2)
    lines, counts = status(project)
    assert f"{len(names)} films" in lines[0] and counts["encode"]["done"] == len(names)


def test_the_films_per_hour_are_those_that_a_clock_counts(project):
    configure(project, "ab", seconds=2)
    start = time.monotonic()
    project.run("--cores", 1)
    wall = time.monotonic() - start
    (rate,) = (float(line.split()[0]) for line in status(project)[0] if line.endswith("films per hour"))
    assert 3600 * 2 / wall < rate <= 3600 * 2 / 4  # the clock of the test has the start of Snakemake in it
    shutil.rmtree(project.path("results/demo"))
    project.run("--cores", 1)
    assert not any("films per hour" in line for line in status(project)[0])  # all of them were in the store


def test_watch_shows_a_run_at_work_and_ends_with_it(project, installed_programs):
    configure(project, "ab", seconds=3)
    process = project.start("--cores", 1)
    wait_for(lambda: list(project.path("results").rglob("frames.json")), "no frames are extracted")
    command = ("-P", "-m", "stages.status", "results/demo", "--watch", "--every", 0.5)
    output, _ = finish(project.start(*command, program="python"))
    finish(process)
    heads = [line for line in output.splitlines() if line.startswith("results/demo: ")]
    assert heads[0] == "results/demo: 0 of 2 films, running" and len(heads) > 2
    assert heads[-1].startswith("results/demo: 2 of 2 films")
    assert "left" in output


def test_a_failure_of_captions_that_are_made_alone(tmp_path, models):
    """The target RUN.caption_vlm of a fused run has jobs of its own."""
    project = Project(tmp_path, models)
    zoo.plain(tmp_path, "a.mp4", frames=5, size=(64, 48))
    project.path("c.mp4").write_bytes(b"no video")
    run = {"recipe": "v2v", "fuse": True, "model": "one-expert", "captioner": "eye", "options": TINY}
    project.configure(demo={**run, "clips": [{"video": "a.mp4"}, {"video": "c.mp4"}]})
    project.run("--cores", 1, "demo.caption_vlm")
    lines, _ = status(project)
    assert ["caption_vlm", "1", "0", "1", "0"] in [line.split() for line in lines]
    assert any(line.startswith("failed: steps/c/") and "c.mp4 is not a readable" in line for line in lines)


def test_the_bytes_in_the_store_are_those_of_its_files(project):
    configure(project, "ab")
    project.run("--cores", 2)
    files = [path for path in project.path("results/store").glob("??/*/**/*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    place, store = project.path("results/demo"), Store(project.path("results/store"))
    assert store_bytes(place, store) == (size, size)
    assert f"store: {format_bytes(size)} of this run, {format_bytes(size)} in all" in status(project)[0]
    for described in place.glob("a*.json"):
        described.unlink()
    shutil.rmtree(place / "steps/a")
    own, everything = store_bytes(place, store)
    assert 0 < own < size == everything


def test_a_fused_job_of_which_parts_were_current_has_ended(project):
    """Its log has no line of what was current."""
    for links in (2, 3):
        clips = [{"id": "a", "video": "a.mp4", "prompt": "on"}]
        options = {"num_frames": 3, "links": links}
        project.configure(demo={"recipe": "chain", "clips": clips, "model": "grey", "options": options})
        project.run("--cores", 2)
    command = ("-P", "-m", "stages.status", "results/demo")
    output, _ = finish(project.start(*command, program="python"))
    assert output.splitlines()[0] == "results/demo: 1 of 1 films, no run is at work"
