"""The figures of `status` from the events of logs: by plain arithmetic."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.plan.status import Status, causes, counts, films_per_hour, seconds_left
from stages.runtime.items import Item
from stages.status import lines


def test_items_whose_inputs_have_failed_do_not_wait():
    film = Item("a", {"clips": ["a.json"]}, "a.mp4")
    items = [("decode", Item("a", {}, "a.json")), ("concat", film), ("score", Item("a", {"film": "a.mp4"}, "a.scores.json"))]
    found = counts(items, {item.output for _, item in items}, Status(False, failures={"a.json": "no reason"}))
    assert {stage: (row["failed"], row["waiting"]) for stage, row in found.items()} == dict.fromkeys(
        ("decode", "concat", "score"), (1, 0)
    )


def test_lines_have_no_control_characters():
    failures = {"/run/a\x1b[2J.mp4": "\u202e is no video"}
    assert all(line.isprintable() for line in lines(Path("/run"), Status(False, failures=failures)))


def event(stage, end, seconds, status="made"):
    return {"stage": stage, "time": float(end), "seconds": seconds, "status": status}


def test_films_per_hour_of_two_gpus_that_work_at_once():
    """Stage by stage, as a plan runs: the films are joined within a second, after all of their work."""
    events = [event("generate", 1000 + 50 * n, 100) for n in range(1, 5)]  # from 950 on, the last ends at 1200
    events += [event("concat", 1250 + n / 10, 0.1) for n in range(4)]
    assert films_per_hour(events) == pytest.approx(3600 * 4 / (1250.3 - 950))


def test_the_time_between_two_runs_is_no_work():
    day = 86400
    events = [event("generate", 100, 100), event("concat", 110, 1), event("generate", day + 100, 100)]
    events += [event("concat", day + 110, 1)]
    assert films_per_hour(events) == pytest.approx(3600 * 2 / (110 + 110))


def test_the_time_from_the_start_of_a_job_to_its_first_item_counts():
    events = [{"event": "lease", "time": 1000.0}, event("generate", 1100, 50), event("concat", 1101, 1)]
    assert films_per_hour(events) == pytest.approx(3600 / 101)


def test_films_that_were_taken_from_the_store_are_not_counted():
    assert films_per_hour([event("concat", 10, 0, "reused"), event("concat", 11, 0, "reused")]) is None
    assert films_per_hour([]) is None


def test_a_failure_is_shown_once_and_not_in_the_stages_that_only_got_it():
    items = [
        (stage, SimpleNamespace(output=f"{clip}/{stage}")) for stage in ("extract", "encode", "concat") for clip in "abc"
    ]
    gone, dark = {"reason": "a.mp4 does not exist"}, {"reason": "b.mp4 has no frame"}
    failures = {
        "a/concat": {**gone, "failed_in": "concat"},  # it reads the source too
        "a/encode": {**gone, "failed_in": "extract"},
        "a/extract": {**gone, "failed_in": "extract"},
        "b/encode": {**dark, "failed_in": "encode"},
        "b/concat": {**dark, "failed_in": "encode"},
    }
    assert causes(items, failures) == {"a/extract": "a.mp4 does not exist", "b/encode": "b.mp4 has no frame"}


def test_the_time_left_names_the_stages_that_it_is_without():
    counts = {
        "encode": {"done": 8, "running": 0, "failed": 0, "waiting": 0},
        "generate": {"done": 2, "running": 2, "failed": 0, "waiting": 4},
        "decode": {"done": 0, "running": 0, "failed": 0, "waiting": 8},
    }
    events = [event("encode", n, 1) for n in range(8)] + [event("generate", 60, 50), event("generate", 80, 70)]
    assert seconds_left(Status(True, counts=counts), events) == (6 * 60, ["decode"])
    assert seconds_left(Status(True, counts=counts), []) == (None, ["generate", "decode"])
    found = Status(True, counts=counts, left=360, unmeasured=["decode"])
    assert "about 6 min left of generate; not known yet: decode" in lines(Path("results/a"), found)
    found = Status(True, counts=counts, left=360)
    assert "about 6 min left" in lines(Path("results/a"), found)
