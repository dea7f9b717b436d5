"""Eight simulated GPUs, 64 clips, and stages that are killed at random: in the end every film is correct."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from examples import toy_family
from tests import zoo
from tests.workflow.conftest import Project

CLIPS = [f"clip{number:02d}" for number in range(64)]
KILLS = 12


def stages_of(folder):
    """Process ids of stages that work in a folder."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == folder:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"--manifest" in words and not any(b"snakemake" in word or word == b"-c" for word in words):
                    yield int(entry.name)
        except OSError:
            continue  # ended meanwhile


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMAKE_GPUS", "8")
    monkeypatch.setenv("KINEMAKE_GPU_LOCKS", str(tmp_path / "locks"))
    root = toy_family.checkout(tmp_path / "checkout")
    project = Project(tmp_path / "project", {"grey": {"family": "toy", "path": "grey"}}, root=root)
    toy_family.weights(project.path("grey"))
    zoo.plain(project.folder, "a.mp4", frames=4, size=(32, 32))
    rows = [{"id": clip, "video": "a.mp4", "brighter": number} for number, clip in enumerate(CLIPS)]
    project.configure(many={"recipe": "toy", "clips": rows, "model": "grey", "options": {"seconds": 0.1}})
    return project


def test_films_are_correct_although_stages_are_killed(project):
    running = project.start("--cores", 8, "--resources", "gpu=8", "--retries", 8)
    rng, killed = random.Random(0), 0
    while running.poll() is None and killed < KILLS:
        time.sleep(0.5)
        if running_stages := list(stages_of(project.folder)):
            os.kill(rng.choice(running_stages), signal.SIGKILL)
            killed += 1
    _, stderr = running.communicate()
    assert (running.returncode, killed) == (0, KILLS), stderr
    for number, clip in enumerate(CLIPS):
        rgb = zoo.rgb_by_ffmpeg(project.path(f"results/many/{clip}.mp4"), (32, 32))
        assert len(rgb) == 3 and rgb.mean() == pytest.approx(100 + number, abs=2)  # 8 bits of luma
    assert "0 failed" in stderr
