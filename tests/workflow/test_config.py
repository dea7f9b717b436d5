"""A mistake in the config is reported in one sentence before any job runs."""

import os
import re

import pytest

from tests import zoo
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count

CLIP = {"video": "a.mp4", "prompt": "p"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"modle": "x"}, "config.runs.demo has the unknown key 'modle': did you mean model?"),
        ({"model": "large"}, "model of run demo is 'large': declared models are "),
        ({"clips": {"videos": "nowhere"}}, "the folder of videos nowhere does not exist: mend the path"),
        (
            {"options": {**TINY, "frame_num": 6}},
            "clip a of run demo: option num_frames is 6: it must be 4n+1, for example 5",
        ),
    ],
    ids=["an unknown key", "an unknown model", "no folder", "a wrong value"],
)
def test_an_invalid_run_is_reported_without_a_traceback(project, change, sentence):
    project.configure(demo={"recipe": "v2v", "clips": [CLIP], "model": "one-expert", "options": TINY, **change})
    report = project.run("--cores", 1, fails=1)
    assert any(line.startswith(f"error: {sentence}") for line in report.splitlines())
    assert "Traceback" not in report and "File " not in report
    assert not project.path("results").exists()


def test_an_unplanned_film_given_as_a_target_is_named(project):
    project.configure(demo={"recipe": "v2v", "clips": [CLIP], "model": "one-expert", "options": TINY})
    report = project.run("--cores", 1, "results/demo/b.mp4", fails=1)
    assert "results/demo/b.mp4 is not the film of a clip: planned are results/demo/a.mp4, ..." in report


@pytest.mark.parametrize(
    ("text", "arguments", "sentence"),
    [
        (b"runs: caf\xe9\n", (), "config.yaml is not UTF-8 text (byte 10): save it as UTF-8"),
        (b"runs: &a {demo: *a}\n", (), "config.yaml has a list or table that contains itself: remove the anchor"),
        (b"runs: " + b"[" * 5000, (), "config.yaml is nested too deep: at most 50 levels are read"),
        (b"{runs: {}, models: {}}", ("--config", "steps=2"), "config has the unknown key 'steps': it is an option: write "),
    ],
    ids=["Latin-1", "within itself", "deep", "an option beside the options"],
)
def test_a_damaged_config_is_one_sentence(tmp_path, text, arguments, sentence):
    project = Project(tmp_path, {})
    project.path("config.yaml").write_bytes(text)
    report = project.run("--cores", 1, *arguments, fails=1)
    (line,) = [line for line in report.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {sentence}")
    assert "Traceback" not in report and "File " not in report


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, models):
    """A project with two runs: one has odd clip ids and film names, the other a damaged list of clips."""
    project = Project(tmp_path_factory.mktemp("mixed"), models)
    zoo.plain(project.folder, "a.mp4", frames=5, size=(64, 48))
    ids = ["0" * 64, "a" + ".0" * 30, "ab" * 25]  # Snakemake takes wildcards that end in repetitions for endless loops
    good = [{"id": identity, "video": "a.mp4", "prompt": "p"} for identity in ids]
    project.path("torn.jsonl").write_text('{"id": "s", "prompt": "a red ring \\ud83d on black"}\n')
    run = {"recipe": "v2v", "model": "one-expert", "options": {**TINY, "size": "32X32"}}
    project.configure(
        good={**run, "clips": good, "name": "{idx:02d} é {clip}.mp4"},
        torn={**run, "clips": "torn.jsonl"},
    )
    return project, [f"results/good/{number:02d} é {identity}.mp4" for number, identity in enumerate(ids)]


SENTENCE = "line 1 of torn.jsonl has half a character (\\ud83d): remove it, or write the character itself in UTF-8"


def test_a_run_with_a_damaged_list_fails_and_the_other_run_is_made(mixed):
    project, films = mixed
    report = project.run(*ONE_WORKER, fails=1)
    assert [frame_count(project.path(film)) for film in films] == [5] * 3
    assert f"warning: torn cannot be made: {SENTENCE}" in report.splitlines()
    rows = [re.split(r"\s{2,}", line) for line in report[report.index("items: ") :].splitlines()]
    assert rows[2] == ["torn", "plan", SENTENCE] and "Traceback" not in report
    assert "Nothing to be done" in project.run(*ONE_WORKER, "good")
    assert SENTENCE in project.run(*ONE_WORKER, "torn", fails=1)


@pytest.mark.parametrize("kind", ["a file", "a dangling link"])
def test_an_unwritable_results_folder_is_named_before_any_job(mixed, tmp_path, kind):
    project = Project(tmp_path, mixed[0].models)
    project.path("results").write_text("mine") if kind == "a file" else os.symlink("nowhere", project.path("results"))
    project.configure(demo={"recipe": "v2v", "clips": [CLIP], "model": "one-expert", "options": TINY})
    report = project.run(*ONE_WORKER, fails=1)
    assert re.search("error: the results cannot be written .results is a (file|link)", report)
    assert "Traceback" not in report and "rule demo." not in report
