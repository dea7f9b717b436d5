"""A small config to plan; each test states what it changes."""

import copy
from pathlib import Path

import pytest

from stages import plan

CONFIG = {
    "models": {
        "big": {"family": "wan", "variant": "14b", "path": "weights/big"},
        "small": {"family": "wan", "variant": "5b", "hub": "Some-Org/Some-Model", "options": {"steps": 30}},
        "eye": {"family": "vlm", "path": "weights/eye"},
    },
    "runs": {
        "demo": {
            "recipe": "v2v",
            "clips": [{"video": "a.mp4"}, {"video": "b.mp4", "prompt": "a cat"}],
            "model": "small",
            "captioner": "eye",
            "options": {"seed": 7},
            "scores": [],
        }
    },
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config, in a working folder with its videos."""
    monkeypatch.chdir(tmp_path)
    for video in ("a.mp4", "b.mp4"):
        Path(video).touch()
    return copy.deepcopy(CONFIG)


@pytest.fixture
def jobs(config):
    """A function that plans the config and returns its jobs by name."""

    def plan_jobs(workers: int = 1, **runs):
        return {job.name: job for job in plan.load({**config, **runs}, workers).jobs}

    return plan_jobs
