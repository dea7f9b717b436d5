"""Films that are scored by the run that makes them, afterwards, and against another run."""

import csv
import json
import re

import pytest

from tests import zoo
from tests.workflow.conftest import ONE_WORKER, TINY, finish, item_counts

CLIPS = [{"id": name, "video": f"{name}.mp4", "prompt": "p"} for name in ("one", "two")]
RUN = {"recipe": "v2v", "clips": CLIPS, "model": "one-expert", "options": TINY, "fuse": True}


@pytest.fixture(scope="module")
def scored(project):
    """A project with a finished run whose films are not scored, and a run that scores its films."""
    for clip in CLIPS:
        zoo.plain(project.folder, clip["video"], frames=5, size=(64, 48))
    project.configure(plain=RUN, scored={**RUN, "scores": ["health", "motion"], "options": {**TINY, "seed": 8}})
    project.report = project.run(*ONE_WORKER)
    return project


def figures(project, name):
    return project.read(f"{name}.scores.json")["fields"]["figures"]


def programs_output(project, *arguments, fails=0):
    return finish(project.start(*arguments, program="score"), fails)[0]


def test_a_run_scores_its_films_and_writes_tables(scored):
    assert item_counts(scored.report)[2] == 0
    assert scored.shards("scored").keys() == {"fused.000", "concat.000"}
    for clip in ("one", "two"):
        found = figures(scored, f"scored/{clip}")
        assert {name.split(".")[0] for name in found} == {"health", "motion"}
        records = scored.read(f"scored/{clip}.scores.json")["provenance"]
        assert [record["stage"] for record in records][-2:] == ["concat", "score"]
    rows = list(csv.DictReader(scored.path("results/scored/scores.csv").read_text().splitlines()))
    assert [row["clip"] for row in rows] == ["one", "two"]
    assert float(rows[0]["motion.magnitude"]) == figures(scored, "scored/one")["motion.magnitude"]
    listed = json.loads(scored.path("results/scored/scores.json").read_text())["clips"]
    assert [(row["clip"], row["failed"]) for row in listed] == [("one", ""), ("two", "")]
    assert not list(scored.path("results/plain").glob("*scores*"))
    assert "Nothing to be done" in scored.run(*ONE_WORKER)


def test_scores_that_are_asked_for_later_leave_the_films(scored):
    """One film has a reference that is no video: it stays, the table names it, and the next run tries again."""
    scored.path("words.mp4").write_text("no video")
    before = {name: state for name, state in scored.files().items() if name.endswith(("one.mp4", "two.mp4", "one.json"))}
    clips = [CLIPS[0], {**CLIPS[1], "reference": "words.mp4"}]
    scored.configure(plain={**RUN, "clips": clips, "scores": ["flicker", "reference"]})
    planned = re.findall(r"^(?:local)?rule (\S+):", scored.output("-n", *ONE_WORKER), re.M)
    assert planned == ["plain.score.000", "all"] or planned == ["all", "plain.score.000"]
    report = scored.run(*ONE_WORKER)
    assert "items: 1 made, 0 reused from the store, 1 failed" in report
    assert "results/plain/two.scores.json  score  words.mp4 is not a readable video" in report
    assert {name: scored.files()[name] for name in before} == before
    assert figures(scored, "plain/one").keys() >= {"flicker.temporal", "flicker.warping_error"}
    assert "words.mp4 is not a readable video" in scored.path("results/plain/scores.csv").read_text()
    scored.path("words.mp4").write_bytes(scored.path("two.mp4").read_bytes())
    assert "items: 1 made, 0 reused from the store, 0 failed" in scored.run(*ONE_WORKER)
    assert figures(scored, "plain/two")["reference.psnr"] > 0


def test_a_film_that_fails_is_not_scored(scored):
    scored.path("bad.mp4").write_text("no video")
    clips = [CLIPS[0], {"id": "bad", "video": "bad.mp4", "prompt": "p"}]
    scored.configure(failing={**RUN, "clips": clips, "scores": ["health"]})
    report = scored.run(*ONE_WORKER, fails=1)
    assert "results/failing/bad.mp4" in report and "bad.scores.json" not in report
    assert figures(scored, "failing/one")["health.faulty_share"] >= 0
    assert not scored.path("results/failing/bad.scores.json").exists()


def test_finished_runs_are_scored_through_the_store_and_stay_current(scored):
    scored.configure(scored={**RUN, "scores": ["health", "motion"], "options": {**TINY, "seed": 8}})
    before = scored.files()
    printed = programs_output(scored, "results/scored")
    assert "results/scored: 2 of 2 films" in printed and "health.faulty_share" in printed
    assert "Nothing to be done" in scored.run(*ONE_WORKER)
    assert scored.files().keys() == before.keys()


def test_two_runs_are_compared_clip_by_clip(scored):
    arguments = (
        "--compare",
        "results/plain",
        "results/scored",
        "--scores",
        "motion",
        "-o",
        "a.md",
        "-o",
        "a.json",
        "-o",
        "a.csv",
    )
    printed = programs_output(scored, *arguments)
    assert printed.splitlines()[0].split() == ["option", "plain", "scored"]
    found = json.loads(scored.path("a.json").read_text())
    assert found["options"]["seed"] == ["7", "8"] and found["runs"] == ["plain", "scored"]
    (motion,) = [one for one in found["comparisons"]["scored"] if one["figure"] == "motion.magnitude"]
    values = [[figures(scored, f"{run}/{clip}")["motion.magnitude"] for clip in ("one", "two")] for run in found["runs"]]
    assert motion["films"] == 2 and motion["first"] == pytest.approx(sum(values[0]) / 2)
    assert motion["difference"] == pytest.approx((sum(values[1]) - sum(values[0])) / 2)
    assert motion["low"] <= motion["difference"] <= motion["high"]
    assert "| seed | 7 | 8 |" in scored.path("a.md").read_text()
    assert scored.path("a.csv").read_text().startswith("first_run,second_run,figure,films,")
