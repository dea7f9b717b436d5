"""Two runs do not work in one results folder at the same time, wherever they are started."""

import os
import shutil
import signal

import pytest

from stages.plan import lock
from stages.runtime.errors import UsageError
from tests import zoo
from tests.commands import wait_for
from tests.workflow.conftest import ONE_WORKER, TINY, Project, frame_count

pytestmark = pytest.mark.usefixtures("installed_programs")


@pytest.fixture
def two_projects(tmp_path, models):
    """Two working folders with one config, whose results folder lies in the first."""
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


def settled_files(project):
    """The files that generate does not change while it runs."""
    return {name: state for name, state in project.files().items() if not name.endswith(".log") and "store/" not in name}


def test_a_second_run_names_the_holder_of_the_results_lock_and_changes_nothing(two_projects):
    first, second = two_projects
    running = first.start(*ONE_WORKER, start_new_session=True)
    generating = first.path("results/film/steps/logs/film.generate.000.log")
    wait_for(lambda: generating.is_file() and '"load"' in generating.read_text(), "no clip is being generated", 600)
    os.killpg(running.pid, signal.SIGSTOP)  # so that the first is still there, however slow the second is
    before = settled_files(first)
    stderr = second.run(*ONE_WORKER, fails=1)
    sentence = f"error: {first.path('results')} is in use by process {running.pid} on "
    (line,) = [line for line in stderr.splitlines() if line.startswith(sentence)]
    assert line.endswith(f"in {first.folder}: wait for it, or set results to another folder: both may have one store")
    assert "Traceback" not in stderr
    assert settled_files(first) == before
    assert "film.decode.000" in second.output("-n")  # a dry run is allowed
    os.killpg(running.pid, signal.SIGCONT)
    os.killpg(running.pid, signal.SIGINT)
    running.communicate()


def test_the_results_lock_is_free_after_its_holder_was_killed(two_projects):
    first, second = two_projects
    running = first.start("--cores", 2)
    wait_for(first.path("results/.lock").exists, "the run did not begin", 600)
    running.kill()
    running.communicate()
    second.run(*ONE_WORKER, "--config", "options={steps: 2}")
    assert frame_count(first.path("results/film/a.mp4")) == 5


@pytest.mark.parametrize("kind", ["link", "hard link", "file"])
def test_a_planted_results_lock_is_not_written(tmp_path, kind):
    results, victim = tmp_path / "results", tmp_path / "victim"
    results.mkdir()
    victim.write_text("precious")
    lock_file = results / ".lock"
    {"link": lock_file.symlink_to, "hard link": lock_file.hardlink_to, "file": lambda _: victim.rename(lock_file)}[kind](
        victim
    )
    with pytest.raises(UsageError, match="remove it"):
        lock.hold(results)
    assert (lock_file if kind == "file" else victim).read_text() == "precious"
