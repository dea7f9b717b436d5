"""What counts as current, what is made again, and how a run ends that is told to."""

import os
import random
import re
import signal
import time

import pytest

from benchmarks import toy
from tests import zoo
from tests.workflow.conftest import Project

FAR = 4_000_000_000  # seconds: in the year 2096


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return toy.checkout(tmp_path_factory.mktemp("toy") / "checkout")


@pytest.fixture
def project(tmp_path, checkout):
    """Two clips of the toy family, configured."""
    project = Project(tmp_path, {"grey": {"family": "toy", "path": "grey"}}, root=checkout)
    toy.weights(project.path("grey"))
    for name in "ab":
        zoo.plain(project.folder, f"{name}.mp4", frames=4, size=(32, 32))
    configure(project)
    return project


def configure(project, **options):
    clips = [{"id": name, "video": f"{name}.mp4"} for name in "ab"]
    project.configure(demo={"recipe": "toy", "clips": clips, "model": "grey", "options": options})


def counts(report):
    """Items made, reused and failed."""
    return tuple(map(int, re.search(r"items: (\d+) made, (\d+) reused from the store, (\d+) failed", report).groups()))


def statuses(project, job):
    return [line["status"] for line in project.log("demo", job) if line["event"] == "item"]


def test_a_film_stays_when_its_source_is_gone(project):
    project.run("--cores", 1)
    project.path("a.mp4").unlink()
    said = project.run("--cores", 1)
    assert "a.mp4 is not there; results/demo/a.mp4, which was made of it, stays" in said
    assert "Nothing to be done" in said and project.path("results/demo/a.mp4").is_file()


def test_a_film_stays_when_making_it_anew_fails(project):
    project.run("--cores", 1)
    film = project.path("results/demo/a.mp4")
    before = film.read_bytes()
    project.path("a.mp4").write_bytes(b"no video")
    said = project.run("--cores", 1, fails=1)
    assert film.read_bytes() == before and "a.mp4 is not a readable video" in said
    zoo.plain(project.folder, "a.mp4", frames=4, size=(32, 32))
    assert "Nothing to be done" in project.run("--cores", 1)


def test_no_date_decides_anything(project):
    os.utime(project.path("a.mp4"), (FAR, FAR))
    project.run("--cores", 1)
    os.utime(project.path("b.mp4"), (FAR, FAR))
    os.utime(project.path("results/demo/a.mp4"), (0, 0))
    assert "Nothing to be done" in project.run("--cores", 1)


def test_a_film_that_was_edited_is_said_and_made_again(project):
    project.run("--cores", 1)
    film = project.path("results/demo/a.mp4")
    before = film.read_bytes()
    film.write_bytes(before + b"edited")
    said = project.run("--cores", 1)
    assert "results/demo/a.mp4 was changed after it was made, and is made again" in said
    assert film.read_bytes() == before


def test_a_film_without_its_description_gets_it_back(project):
    project.run("--cores", 1)
    project.path("results/demo/a.json").unlink()
    project.run("--cores", 1)
    assert project.read("demo/a.json")


def test_a_job_that_failed_after_a_change_is_not_forgotten(project):
    project.run("--cores", 1)
    configure(project, brighter=50)
    tone = project.path("grey/tone.txt")
    tone.rename(project.path("away"))
    project.run("--cores", 1, fails=1)
    project.path("away").rename(tone)
    project.run("--cores", 1)
    rgb = zoo.rgb_by_ffmpeg(project.path("results/demo/a.mp4"), (32, 32))
    assert rgb.mean() == pytest.approx(150, abs=2)


def test_a_film_can_be_asked_for_by_its_name(project):
    project.run("--cores", 1, "results/demo/b.mp4")
    assert not project.path("results/demo/a.mp4").exists()
    assert counts(project.run("--cores", 1, "results/demo/b.mp4")) == (0, 0, 0)
    project.run("--cores", 1)
    assert project.path("results/demo/a.mp4").exists()


def test_what_is_named_is_made_again_and_not_taken_from_the_store(project):
    project.run("--cores", 1)
    film = project.path("results/demo/a.mp4")
    before = film.read_bytes()
    assert counts(project.run("--cores", 1, "--config", "again=[all]"))[:2] == (10, 0)
    assert "Nothing to be done" in project.run("--cores", 1)
    project.run("--cores", 1, "--config", "again=[demo.generate.000]")
    assert statuses(project, "generate.000") == ["made", "made"]
    assert statuses(project, "decode.000") == ["reused", "reused"]  # of the same latents
    assert film.read_bytes() == before and "Nothing to be done" in project.run("--cores", 1)


def test_a_run_starts_its_own_stages(project):
    """Whatever else is called so on the PATH, in the working folder, or on the PYTHONPATH of other programs."""
    folder = project.path("bin")
    folder.mkdir()
    for name in ("extract_frames", "encode", "generate", "decode", "concat", "fetch"):
        (folder / name).write_text("#!/bin/sh\nexit 7\n")
        (folder / name).chmod(0o755)
    project.path("stages").mkdir()
    project.path("stages/__init__.py").write_text("raise SystemExit(7)")
    project.run("--cores", 1, path=folder)
    assert project.path("results/demo/a.mp4").is_file()


def test_after_touch_nobody_is_said_to_have_been_killed(project):
    said = project.run("--cores", 1, "--touch")
    assert "items: 0 made" in said and "killed" not in said


def test_forcing_by_snakemake_says_what_to_use(project):
    project.run("--cores", 1)
    for option in (["-F"], ["-R", "all"], ["-f"]):
        assert "--config 'again=[NAME, ...]'" in project.run("--cores", 1, *option, fails=1)


def test_sigterm_ends_a_run_in_order(project):
    chance = random.Random(0)
    for _ in range(int(os.environ.get("KINEMAKE_SIGTERMS", "3"))):
        configure(project, seconds=0.3, brighter=chance.randrange(200))
        process = project.start("--cores", 2)
        time.sleep(chance.uniform(2, 12))
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said, said
    configure(project, brighter=30)
    project.run("--cores", 2)
    assert zoo.rgb_by_ffmpeg(project.path("results/demo/a.mp4"), (32, 32)).mean() == pytest.approx(130, abs=2)
