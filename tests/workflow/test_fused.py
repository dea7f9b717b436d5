"""Fused jobs: killed, orphaned, with a failing link, on one GPU of two users, and of other recipes than chain."""

import os
import re
import signal
import time

import pytest

from tests import zoo
from tests.workflow.conftest import ONE_WORKER, TINY, Project, finish, frame_count, item_counts
from tests.workflow.test_kill import kill_session

F = TINY["frame_num"]
SLOW = {**TINY, "fit": "crop", "steps": 100, "links": 4}


def chain(clips, options=SLOW):
    return {"recipe": "chain", "clips": clips, "model": "one-expert", "options": options}


def start_chain(project, links_done, **options):
    """Start a chain and wait until these links of it are finished."""
    zoo.plain(project.folder, "a.mp4", frames=5, size=(64, 48))
    project.configure(run=chain([{"id": "a", "video": "a.mp4", "prompt": "a kite"}]))
    process = project.start(*ONE_WORKER, start_new_session=True, **options)
    deadline = time.monotonic() + 600
    while len(made(project, "decode")) < links_done and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def made(project, stage):
    """The items that a stage of the fused job has made, by its log."""
    log = project.path("results/run/steps/logs/run.fused.000.log")
    events = project.log("run", "fused.000") if log.exists() else []
    return [event["item"] for event in events if event.get("status") == "made" and event["stage"] == stage]


@pytest.fixture
def one(tmp_path, models):
    return Project(tmp_path / "one", models)


def test_a_fused_job_killed_in_link_three_keeps_two_links(one):
    process = start_chain(one, 2)
    kill_session(process.pid)
    process.communicate()
    assert made(one, "decode") == ["a/link01", "a/link02"]
    films = [one.path(f"results/run/a/video_0{link}_a.mp4") for link in (1, 2)]
    before = [film.stat().st_ino for film in films]
    one.run(*ONE_WORKER, "--unlock")
    report = one.run(*ONE_WORKER)
    assert item_counts(report)[0] in (6, 7)  # encode, generate, decode of two links, of which encode may be done; the film
    assert {item.partition("/")[2] for item in made(one, "generate")} == {"link03", "link04"}
    assert [film.stat().st_ino for film in films] == before
    assert frame_count(one.path("results/run/a.mp4")) == F + 3 * (F - 1)
    assert "Nothing to be done" in one.output("-n")


def test_a_fused_job_begins_no_item_after_its_run_was_killed(one):
    process = start_chain(one, 1)
    os.kill(process.pid, signal.SIGKILL)  # the job itself goes on
    log, deadline = one.path("results/run/steps/logs/run.fused.000.log"), time.monotonic() + 120
    while "error: " not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    kill_session(process.pid)
    process.communicate()
    assert "error: the run that started this job has ended: start it again" in log.read_text()
    assert len(made(one, "decode")) < 4


def test_a_failing_link_leaves_the_other_films_whole(one):
    zoo.plain(one.folder, "a.mp4", frames=5, size=(64, 48))
    clips = [{"id": name, "video": "a.mp4", "prompt": f"a {name}"} for name in ("good", "bad", "fine")]
    one.configure(run=chain(clips, {**SLOW, "steps": 2, "links": 3}))
    one.path("results/run/bad/video_02_bad.mp4/in the way").mkdir(parents=True)
    report = one.run(*ONE_WORKER, fails=1)
    assert {frame_count(one.path(f"results/run/{name}.mp4")) for name in ("good", "fine")} == {F + 2 * (F - 1)}
    row = next(line for line in report.splitlines() if line.startswith("results/run/bad.mp4"))
    film, stage, reason = re.split(r"\s{2,}", row, maxsplit=2)
    assert stage == "decode" and "video_02_bad" in reason
    assert not one.path("results/run/bad.mp4").exists() and one.path("results/run/bad/video_01_bad.mp4").exists()


def test_fused_jobs_of_two_users_take_turns_on_one_gpu(tmp_path, models, monkeypatch):
    monkeypatch.setenv("KINEMAKE_GPUS", "1")
    monkeypatch.setenv("KINEMAKE_GPU_LOCKS", str(tmp_path / "locks"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    users = [Project(tmp_path / name, models) for name in ("ann", "bob")]
    for user in users:
        zoo.plain(user.folder, "a.mp4", frames=5, size=(64, 48))
        user.configure(run=chain([{"id": "a", "video": "a.mp4", "prompt": "a kite"}], {**SLOW, "steps": 2, "links": 2}))
    for process in [user.start(*ONE_WORKER) for user in users]:
        finish(process)
    logs = [user.log("run", "fused.000") for user in users]
    spans = sorted((next(e["time"] for e in log if e["event"] == "lease"), log[-1]["time"]) for log in logs)
    assert all(sum(event["event"] == "lease" for event in log) == 1 for log in logs)
    assert spans[0][1] <= spans[1][0]


def test_another_recipe_is_fused_on_request(one):
    zoo.plain(one.folder, "a.mp4", frames=5, size=(64, 48))
    run = {"recipe": "v2v", "clips": [{"id": "a", "video": "a.mp4", "prompt": "a kite"}], "model": "two-experts"}
    one.configure(fused={**run, "fuse": True, "options": {**TINY, "fit": "crop"}})
    assert item_counts(one.run(*ONE_WORKER)) == (6, 0, 0) and set(one.shards("fused")) == {"fused.000", "concat.000"}
    assert frame_count(one.path("results/fused/a.mp4")) == F
