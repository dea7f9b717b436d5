"""A long item logs its progress."""

import json

from stages.runtime import progress
from stages.runtime.progress import StepBar, track


def test_track_logs_every_tenth_of_an_item_except_the_last(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    list(track(range(40), "a/link01", "block"))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["item"], line["done"], line["of"]) for line in lines] == [
        ("progress", "a/link01", done, 40) for done in range(4, 40, 4)
    ]


def test_step_bar_logs_nothing_for_a_short_item(capsys):
    with StepBar(100, "a") as bar:
        for _ in range(100):
            bar.update()
    assert capsys.readouterr().err == ""


def test_step_bar_of_a_resumed_item_counts_the_earlier_steps(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0)
    with StepBar(10, "a", done=7) as bar:
        bar.update()
    assert json.loads(capsys.readouterr().err)["done"] == 8
