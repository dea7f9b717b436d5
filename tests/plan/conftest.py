"""A small config to plan from; every test says what it changes."""

import copy

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
        }
    },
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return copy.deepcopy(CONFIG)


@pytest.fixture
def jobs(config):
    """name -> job of the plan of a config (films under films/NAME)."""

    def of(workers: int = 1, **runs):
        planned = plan.load({**config, **runs}, workers)
        return {job.name: job for job in [*planned.jobs, *planned.films.values()]}

    return of
