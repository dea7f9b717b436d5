"""Models among the scores of a run."""

import pytest

from stages import plan
from stages.runtime.errors import UsageError

EYES = {"family": "vision", "variant": "dinov2", "hub": "facebook/dinov2-base", "options": {"sampled_frames": 8}}


@pytest.fixture
def scored(config):
    """The config with a run that a model scores."""
    config["models"]["eyes"] = EYES
    config["runs"]["demo"]["scores"] = ["health", "eyes"]
    return config


def test_a_model_scores_each_film_in_a_job_of_its_own(scored):
    jobs = {job.name: job for job in plan.load(scored, 1).jobs}
    alone, with_films = jobs["demo.score.eyes.000"], jobs["demo.concat.000"]
    assert (alone.gpu, alone.extra, alone.image) == (1, "caption", "caption_vlm")
    assert (with_films.gpu, with_films.extra) == (0, "frames")
    films = [item.output for item in with_films.parts[0].items]
    assert [item.inputs["film"] for item in alone.items] == films
    assert [item.output for item in alone.items] == [film.replace(".mp4", ".eyes.scores.json") for film in films]
    assert {item.options["sampled_frames"] for item in alone.items} == {8} and {item.model for item in alone.items} == {
        "eyes"
    }
    assert alone.needs == {"demo.concat.000"} and "results/weights/eyes.json" in alone.inputs


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("helth", "scores of run demo has 'helth': did you mean health?"),
        ("small", "scores of run demo has 'small': known are health, .* and declared models of a family that scores: eyes"),
    ],
)
def test_a_name_that_does_not_score_is_refused(scored, name, sentence):
    scored["runs"]["demo"]["scores"].append(name)
    with pytest.raises(UsageError, match=sentence):
        plan.load(scored, 1)
