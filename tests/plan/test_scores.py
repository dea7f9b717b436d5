"""The items and jobs that score films."""

import json
from pathlib import Path

import pytest

from stages import plan
from stages.media.options import SCORES
from stages.plan.scores import Row, write_tables
from stages.plan.shards import ShardSize
from stages.runtime.errors import UsageError

GENERATED = ("extract_frames", "caption_vlm", "encode", "generate", "decode")


@pytest.fixture
def run(config):
    """A run that says nothing of scores."""
    del config["runs"]["demo"]["scores"]
    return config["runs"]["demo"]


def jobs_of(config, **options):
    return {job.name: job for job in plan.load(config, 1, **options).jobs}


def test_films_are_scored_by_the_job_that_makes_them(config, run):
    jobs = jobs_of(config)
    assert set(jobs) == {f"demo.{stage}.000" for stage in (*GENERATED, "concat")}
    films, scores = jobs["demo.concat.000"].parts
    assert [item.output for item in scores.items] == ["results/demo/a.scores.json", "results/demo/b.scores.json"]
    for film, item in zip(films.items, scores.items, strict=True):
        assert item.id == film.id and item.inputs == {"film": film.output, "source": f"{item.id}.mp4"}
        assert item.options["scores"] == list(SCORES) and item.options["aligned"] is False
    assert jobs["demo.concat.000"].image == "concat" and jobs["demo.concat.000"].command(1).startswith("fused ")
    lines = jobs["demo.concat.000"].manifest_text.splitlines()
    assert [json.loads(line)["step"] for line in lines] == ["concat", "concat", "score", "score"]


def test_a_run_says_what_is_measured(config, run):
    run["scores"] = ["flicker", "health"]
    (_, scores) = jobs_of(config)["demo.concat.000"].parts
    assert scores.items[0].options["scores"] == ["flicker", "health"]
    run["scores"] = []
    assert [part.step for part in jobs_of(config)["demo.concat.000"].parts] == ["concat"]
    run["scores"] = ["shapes"]  # which is measured by score RESULTS/RUN
    assert [part.step for part in jobs_of(config)["demo.concat.000"].parts] == ["concat"]
    run["scores"] = ["beauty"]
    with pytest.raises(UsageError, match="scores of run demo has 'beauty': known are health, motion"):
        plan.load(config, 1)


def test_a_reference_is_an_input_of_the_scores_alone(config, run):
    run["clips"][0]["reference"] = "b.mp4"
    films, scores = jobs_of(config)["demo.concat.000"].parts
    assert scores.items[0].options["reference"] == "b.mp4" and scores.items[1].options["reference"] is None
    assert "b.mp4" in scores.given and "reference" not in films.items[0].options


def test_no_score_changes_the_fingerprint_of_a_film(config, run):
    def films():
        return [item.fingerprint for item in jobs_of(config)["demo.concat.000"].parts[0].items]

    scored = films()
    run["scores"] = []
    assert films() == scored


def test_a_film_that_is_asked_for_by_its_path_is_scored_too(config, run):
    planned = plan.load(config, 1)
    job = planned.film("results/demo", "a.mp4")
    assert [item.output for item in job.items] == ["results/demo/a.mp4", "results/demo/a.scores.json"]
    assert planned.films.keys() == {"results/demo/a.mp4", "results/demo/b.mp4"}


def test_scores_change_no_shard(config, run):
    steps = [*GENERATED, "concat"]
    assert ShardSize.of([*steps, "score"], []) == ShardSize.of(steps, [])
    run["fuse"] = True
    assert [part.step for part in jobs_of(config)["demo.fused.000"].parts] == list(GENERATED)


def test_a_translation_shows_its_source_frame_by_frame(config, run):
    config["models"]["sd"] = {"family": "fresco", "path": "weights/sd"}
    clips = [{"video": "a.mp4", "prompt": "a cat"}]
    config["runs"]["demo"] = {"recipe": "fresco", "clips": clips, "model": "sd"}
    assert jobs_of(config)["demo.concat.000"].parts[1].items[0].options["aligned"] is True


def test_no_reason_in_the_table_is_a_formula_to_a_spreadsheet(tmp_path):
    reason = "=HYPERLINK(1).mp4 is not a readable video: mend it"
    write_tables(str(tmp_path), [Row("a", {"drift.luma": -0.5}), Row("b", failed=reason)])
    assert (tmp_path / "scores.csv").read_text() == f"clip,drift.luma,failed\na,-0.5,\nb,,'{reason}\n"
    assert json.loads((tmp_path / "scores.json").read_text())["clips"][1]["failed"] == reason


def test_a_clip_may_not_have_the_name_of_the_table(config, run):
    Path("scores.mp4").touch()
    run["clips"] = [{"video": "scores.mp4", "id": "scores"}]
    with pytest.raises(UsageError, match="the id of clip 1 of run demo is 'scores'"):
        plan.load(config, 1)
