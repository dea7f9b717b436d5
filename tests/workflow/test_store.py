"""The command `store`: what a store holds for which run, and that cleaning it loses nothing that a result uses."""

import os
import random
import shutil
import signal
import time

import pytest

from stages.runtime.store import Store
from stages.runtime.store_cleaning import entries, keys_in
from tests import zoo
from tests.workflow.conftest import finish

ROUNDS = int(os.environ.get("KINEMAKE_CLEANINGS", "3"))  # with random kills


@pytest.fixture
def project(toy_project):
    """A project with two sources that differ, whose store lies beside its results."""
    zoo.plain(toy_project.folder, "b.mp4", frames=4, size=(48, 48))
    return toy_project


def configure(project, *runs, **options):
    """Runs of the clips a and b, each with a tone of its own."""
    clips = [{"id": name, "video": f"{name}.mp4", "num_frames": frames} for frames, name in enumerate("ab", 3)]
    toy = {"recipe": "toy", "fuse": True, "clips": clips, "model": "grey"}
    project.configure(
        store="store", **{run: {**toy, "options": {"brighter": 10 * n, **options}} for n, run in enumerate(runs, 1)}
    )


def start_store(project, *arguments):
    return project.start("-P", "-m", "stages.store", *arguments, program="python")


def store(project, *arguments, fails=0):
    """The output of the command `store`, or its error if it fails."""
    out, err = finish(start_store(project, *arguments), fails)
    return err if fails else out


def used(project):
    """The keys of everything that the results were made of."""
    return set(keys_in(project.path("results")))


def kept(project):
    return {entry.key for entry in entries(Store(project.path("store")))}


def counts_of(table):
    """The number of items in each row of a table of `store size`."""
    rows = [line.split() for line in table.splitlines()]
    return {" ".join(row[:-5]): int(row[-5]) for row in rows[1:]}


def test_what_no_result_uses_is_counted_and_removed_and_the_rest_stays(project):
    configure(project, "one", "two")
    project.run("--cores", 2)
    everything, results = kept(project), project.path("results")
    # the frames and the encodings of both runs are the same
    rows = {f"{results}/one": 10, f"{results}/two": 10, "used by no result": 0, "all": 16}
    assert counts_of(store(project, "size", "store")) == rows
    shutil.rmtree(results / "two")
    assert counts_of(store(project, "size", "store")) == {f"{results}/one": 10, "used by no result": 6, "all": 16}
    assert "6 items of " in (planned := store(project, "gc", "store", "-n")) and "would be removed" in planned
    assert kept(project) == everything
    assert "0 items of 0.0 MB removed" in store(project, "gc", "store", "--to", "1GB")
    assert "6 items of " in store(project, "gc", "store")
    assert kept(project) == used(project)
    configure(project, "one")
    shutil.rmtree(results / "one")
    assert "0 made, 10 reused" in project.run("--cores", 2)


def test_the_items_that_were_read_last_are_removed_last(project):
    configure(project, "one", "two")
    project.run("--cores", 2)
    shutil.rmtree(project.path("results"))
    for number, entry in enumerate(entries(Store(project.path("store")))):
        os.utime(entry.folder, (number, number))
    by_time = sorted(entries(Store(project.path("store"))), key=lambda entry: entry.time)
    project.path("results").mkdir()
    limit = sum(entry.bytes for entry in by_time[5:])
    store(project, "gc", "store", "--to", limit)
    assert kept(project) == {entry.key for entry in by_time[5:]}


def test_a_store_that_is_in_use_is_not_cleaned(project):
    configure(project, "one", seconds=2)
    process = project.start("--cores", 2)
    while not project.path("store/staging").exists():
        time.sleep(0.05)
    message = store(project, "gc", "store", fails=1)
    assert f"error: store is in use by the run in {project.path('results')}: clean it when the runs have ended" in message
    finish(process)


def test_a_store_is_not_cleaned_beside_a_stage_by_hand_or_without_the_results_that_used_it(project):
    configure(project, "one")
    project.run("--cores", 2)
    with Store(project.path("store")).in_use():
        assert "error: store is in use by process " in store(project, "gc", "store", fails=1)
    project.path("results").rename(project.path("elsewhere"))
    message = store(project, "gc", "store", fails=1)
    assert f"{project.path('results')}, a results folder that has used store, is not there: bring it back" in message
    assert "10 items of " in store(project, "gc", "store", "--forget-missing")
    assert not kept(project)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("gc", "grey"), "error: grey is not a store that a run has used: give"),
        (("size", "nothing"), "error: nothing is not a store that a run has used: give"),
        (("gc", "store", "--to", "much"), "error: --to is 'much', which is no size: write it like 100GB, 1.5TB or 0"),
    ],
)
def test_a_wrong_store_or_size_is_one_sentence(project, arguments, sentence):
    project.path("store/results").mkdir(parents=True)
    assert sentence in store(project, *arguments, fails=2)


def test_cleaning_beside_runs_that_are_killed_loses_nothing_that_a_result_uses(project, installed_programs):
    rng = random.Random(0)
    for _ in range(ROUNDS):
        configure(project, "one", brighter=rng.randrange(200), seconds=0.2)
        run = project.start("--cores", 2, "--nolock")  # Snakemake's own lock outlives a kill
        time.sleep(rng.uniform(1, 5))
        cleaning = start_store(project, "gc", "store")
        time.sleep(rng.uniform(0, 1))
        for process in rng.sample([run, cleaning], rng.randint(0, 2)):
            process.send_signal(signal.SIGKILL)
        for process in (run, cleaning):
            process.communicate()
        while store_is_held(project):  # a stage outlives a run that was killed until its item is done
            time.sleep(0.1)
        assert used(project) <= kept(project)
        store(project, "gc", "store")
        assert used(project) <= kept(project)
    project.run("--cores", 2, "--nolock")
    assert all(Store(project.path("store")).find(key) for key in used(project))


def store_is_held(project):
    out, err = start_store(project, "gc", "store", "-n").communicate()
    return "is in use" in err
