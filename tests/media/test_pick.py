"""`pick` as a user runs it by hand: one of several clips, by a figure of their scores or by its number."""

import pytest

from stages.runtime import artifacts
from tests.commands import events, stage
from tests.media.test_concat import frame_greys, write_clip
from tests.records import fields

GREYS = {"a": [10, 60], "b": [110, 160], "c": [210, 240]}


@pytest.fixture
def clips(tmp_path):
    return [write_clip(tmp_path, name, greys) for name, greys in GREYS.items()]


def scores(folder, **values):
    """Arguments with scores of each clip, which have one figure."""
    arguments = []
    for number, value in enumerate(values["repeated"]):
        found = {"motion.repeated_frames": value, "motion.magnitude": value}
        path = folder / f"{number}.scores.json"
        artifacts.write_index(path, "scores", fields("scores", scores=["motion"], figures=found, details={}))
        arguments += ["--scores", path]
    return arguments


@pytest.mark.parametrize(
    ("by", "values", "take"),
    [
        ("motion.repeated_frames", [3, 1, 2], "b"),  # of which less is better
        ("highest motion.repeated_frames", [3, 1, 2], "a"),
        ("lowest motion.magnitude", [3, 2, 1], "c"),
        ("motion.repeated_frames", [2, 1, 1], "b"),  # the first of equals
        ("motion.repeated_frames", [None, 2, 1], "c"),
        ("motion.repeated_frames", [None, 2, None], "b"),
    ],
)
def test_the_take_with_the_better_figure_is_picked(tmp_path, clips, by, values, take):
    stage("pick", *clips, *scores(tmp_path, repeated=values), "--by", by, "-o", tmp_path / "link.json")
    picked, chosen = (artifacts.read(tmp_path / name, ("clip",)) for name in ("link.json", f"{take}.json"))
    assert frame_greys(tmp_path / "link.mp4") == pytest.approx(GREYS[take], abs=2)
    assert {suffix: member["sha256"] for suffix, member in picked.members.items()} == {
        suffix: member["sha256"] for suffix, member in chosen.members.items()
    }
    assert picked.fields["pick"] == {"take": "abc".index(take) + 1, "of": 3, "by": by, "values": values}
    assert picked.digest == chosen.digest  # so that what follows is the same as without takes


def test_a_take_is_picked_by_its_number_or_is_the_first(tmp_path, clips):
    stage("pick", *clips, "--take", 3, "-o", tmp_path / "third.json")
    stage("pick", *clips, "-o", tmp_path / "first.json")
    assert frame_greys(tmp_path / "third.mp4") == pytest.approx(GREYS["c"], abs=2)
    assert frame_greys(tmp_path / "first.mp4") == pytest.approx(GREYS["a"], abs=2)


def test_the_first_is_picked_with_a_warning_where_no_take_has_the_figure(tmp_path, clips):
    given = scores(tmp_path, repeated=[None] * 3)
    stderr = stage("pick", *clips, *given, "--by", "motion.repeated_frames", "-o", tmp_path / "link.json")
    warnings = [event["reason"] for event in events(stderr) if event["event"] == "warning"]
    assert warnings == ["no take has the figure motion.repeated_frames"]
    assert artifacts.read(tmp_path / "link.json", ("clip",)).fields["pick"]["take"] == 1


def failure(path):
    artifacts.write_failure(path, artifacts.Failure("decode", path.stem, "the disk is odd", "mend it"))


def test_among_takes_of_which_some_failed_the_others_are_compared(tmp_path, clips):
    """The best one failed, and the scores of another."""
    given = scores(tmp_path, repeated=[1, 3, 2])
    failure(tmp_path / "a.json")
    failure(tmp_path / "2.scores.json")
    stage("pick", *clips, *given, "--by", "motion.repeated_frames", "-o", tmp_path / "link.json")
    stage("pick", *clips, "-o", tmp_path / "first.json")
    found = [artifacts.read(tmp_path / name, ("clip",)).fields["pick"] for name in ("link.json", "first.json")]
    assert found[0] == {"take": 2, "of": 3, "by": "motion.repeated_frames", "values": [None, 3, None], "failed": [1]}
    assert (found[1]["take"], found[1]["failed"]) == (2, [1])


def test_a_pick_fails_if_the_take_that_is_asked_for_did_or_all_did(tmp_path, clips):
    failure(tmp_path / "b.json")
    assert "the disk is odd: mend it" in stage("pick", *clips, "--take", 2, "-o", tmp_path / "link.json", fails=1)
    assert "the disk is odd: mend it" in stage("pick", clips[1], clips[1], "-o", tmp_path / "link.json", fails=1)
    assert not (tmp_path / "link.json").exists()
    stage("pick", *clips, "--take", 3, "-o", tmp_path / "link.json")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--take", "4"], "take 4 is asked for, and there are 3: name one of them"),
        (
            ["--by", "motion.repeated_frames"],
            "there are 3 takes and 0 scores: give the scores of each take, in the same order",
        ),
        (["--by", "motion.magnitude"], "option by is 'motion.magnitude': neither direction is better in general"),
    ],
)
def test_wrong_picks_are_refused_with_a_sentence(tmp_path, clips, arguments, sentence):
    stderr = stage("pick", *clips, *arguments, "-o", tmp_path / "link.json", fails=2 if "option" in sentence else 1)
    assert sentence in stderr


def test_a_figure_that_was_not_measured_is_refused(tmp_path, clips):
    given = scores(tmp_path, repeated=[1, 2, 3])
    stderr = stage("pick", *clips, *given, "--by", "health.blur", "-o", tmp_path / "link.json", fails=1)
    assert "has no figure health.blur: pick by one that was measured: motion.magnitude, motion.repeated_frames" in stderr
