"""Two runs do not work in one results folder at the same time, wherever they were started."""

import shutil
import signal

import pytest

from stages.plan import lock
from stages.runtime.errors import UsageError
from tests import zoo
from tests.commands import wait_for
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count


@pytest.fixture
def two(tmp_path, models):
    """Two working folders with one config, whose results are in the first."""
    first, second = (Project(tmp_path / name, models) for name in ("first", "second"))
    zoo.plain(first.folder, "a.mp4", frames=5, size=(64, 48))
    clip = {"id": "a", "video": str(first.path("a.mp4")), "prompt": "a"}
    options = {**TINY, "steps": 1000}
    first.configure(
        results=str(first.path("results")),
        store=str(first.path("results/store")),
        film={"recipe": "v2v", "clips": [clip], "model": "one-expert", "options": options},
    )
    shutil.copy(first.path("config.yaml"), second.folder)
    return first, second


def settled(project):
    """The files that generate, at work, leaves alone."""
    return {name: state for name, state in project.files().items() if not name.endswith(".log") and "store/" not in name}


def test_the_second_is_told_who_is_there_and_disturbs_nothing(two):
    first, second = two
    running = first.start(*ONE_WORKER)
    generating = first.path("results/film/steps/logs/film.generate.000.log")
    wait_for(lambda: generating.is_file() and '"load"' in generating.read_text(), "no clip is being generated", 600)
    before = settled(first)
    said = second.run(*ONE_WORKER, fails=1)
    sentence = f"error: {first.path('results')} is in use by process {running.pid} on "
    (told,) = [line for line in said.splitlines() if line.startswith(sentence)]
    assert told.endswith(f"in {first.folder}: wait for it, or set results to another folder: both may have one store")
    assert "Traceback" not in said
    assert settled(first) == before
    assert "film.decode.000" in second.output("-n")  # to look is allowed
    running.send_signal(signal.SIGINT)
    running.communicate()


def test_it_is_free_when_the_first_has_been_killed(two):
    first, second = two
    running = first.start("--cores", 2)
    wait_for(first.path("results/.lock").exists, "the run did not begin", 600)
    running.kill()
    running.communicate()
    second.run(*ONE_WORKER, "--config", "options={steps: 2}")
    assert frame_count(first.path("results/film/a.mp4")) == 5


@pytest.mark.parametrize("planted", ["link", "hard link", "file"])
def test_what_stands_in_the_place_of_the_lock_is_not_written(tmp_path, planted):
    results, victim = tmp_path / "results", tmp_path / "victim"
    results.mkdir()
    victim.write_text("precious")
    lock_file = results / ".lock"
    {"link": lock_file.symlink_to, "hard link": lock_file.hardlink_to, "file": lambda _: victim.rename(lock_file)}[planted](
        victim
    )
    with pytest.raises(UsageError, match="remove it"):
        lock.hold(results)
    assert (lock_file if planted == "file" else victim).read_text() == "precious"
