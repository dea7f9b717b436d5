"""A mistake in the config is one clear sentence, before anything runs."""

import pytest

from tests.workflow.conftest import TINY

CLIP = {"video": "a.mp4", "prompt": "p"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modle": "x"}, "config.runs.demo has the unknown key 'modle': did you mean model?"),
        ({"model": "large"}, "model of run demo is 'large': declared models are eye, one-expert, two-experts"),
        ({"clips": {"videos": "nowhere"}}, "the folder of videos nowhere does not exist: mend the path"),
        ({"options": {**TINY, "frame_num": 6}}, "clip a of run demo: option frame_num is 6: it must be 4n+1, for example 5"),
    ],
    ids=["an unknown key", "an unknown model", "no folder", "a wrong value"],
)
def test_it_is_said_without_a_traceback(project, change, sentence):
    project.configure(demo={"recipe": "v2v", "clips": [CLIP], "model": "one-expert", "options": TINY, **change})
    report = project.run("--cores", 1, fails=1)
    assert f"error: {sentence}" in report.splitlines()
    assert "Traceback" not in report and "File " not in report
    assert not project.path("results").exists()


def test_a_film_that_is_not_planned_is_named(project):
    project.configure(demo={"recipe": "v2v", "clips": [CLIP], "model": "one-expert", "options": TINY})
    report = project.run("--cores", 1, "results/demo/b.mp4", fails=1)
    assert "results/demo/b.mp4 is not the film of a clip: planned are results/demo/a.mp4, ..." in report
