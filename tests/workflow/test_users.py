"""Two users of one machine share a store and a results folder. Files that one of them may not read or write are named."""

import os
import tempfile
from pathlib import Path

import pytest

from examples import toy_family
from tests import zoo
from tests.people import GROUP, Person, needs_root
from tests.workflow.conftest import ROOT, finish, item_counts

pytestmark = needs_root
READ_ONLY = ["-n", "--summary", "--detailed-summary", "--dag", "--rulegraph", "--list-rules", "--lint"]
PAGE = (ROOT / "docs/cluster.md").read_text().split("## Several users")[1].split("\n## ")[0]
*SHARE_COMMANDS, REPAIR_COMMAND = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]


@pytest.fixture(scope="module")
def checkout():
    """A checkout with the toy family that every user may read."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield toy_family.checkout(Path(name) / "checkout")


@pytest.fixture
def folder():
    """A folder that every user may write to, with a model and a video."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        toy_family.weights(Path(name) / "grey").chmod(0o755)
        zoo.plain(name, "a.mp4", frames=4, size=(32, 32)).chmod(0o644)
        (Path(name) / "grey/tone.txt").chmod(0o644)
        yield Path(name)


@pytest.fixture
def people(folder, checkout):
    """A function that makes the users Ann and Ben with a umask."""

    def make_people(umask):
        models = {"grey": {"family": "toy", "path": str(folder / "grey")}}
        return [Person(folder / name, uid, umask, models, checkout) for name, uid in (("ann", 60_001), ("ben", 60_002))]

    return make_people


def configure(person, results, store, brighter=10):
    clips = [{"id": "a", "video": str(person.folder.parent / "a.mp4")}]
    run = {"recipe": "toy", "fuse": True, "clips": clips, "model": "grey", "options": {"brighter": brighter}}
    person.configure(results=str(results), store=str(store), demo=run)


def make(person, **options):
    """Run Snakemake and return the numbers of items made, reused and failed."""
    return item_counts(person.run("--cores", 1, **options))


def refusal(person, *arguments):
    """The error with which a run ends before any job."""
    stderr = person.run("--cores", 1, *arguments, fails=1)
    assert "Traceback" not in stderr and "rule demo." not in stderr, stderr
    (sentence,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    return sentence


def run_documented(person, command, folder):
    """Run a command of the docs as a user, with another folder and group."""
    command = command.replace("/data/films", str(folder)).replace("films", str(GROUP))
    finish(person.start("-ec", command.replace("$USER", str(person.identity["user"])), program="sh"))


def share(person, folder):
    for command in SHARE_COMMANDS:
        run_documented(person, command, folder)
    return folder


def file_states(folder):
    """Size, time, permissions and owner of a folder and everything in it, by path."""
    found = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    return {str(path): (state.st_size, state.st_mtime_ns, state.st_mode, state.st_uid) for path, state in found.items()}


def test_two_users_share_a_folder_made_as_documented(folder, people):
    ann, ben = people(0o002)
    shared = share(ann, folder / "shared")
    for person in (ann, ben):
        configure(person, person.path("results"), shared / "store")
    assert make(ann) == (5, 0, 0)
    assert make(ben) == (0, 5, 0)
    configure(ben, ben.path("results"), shared / "store", brighter=20)
    assert make(ben) == (3, 0, 0)  # brighter is an option of generate
    configure(ann, ann.path("results"), shared / "store", brighter=20)
    assert make(ann) == (0, 3, 0)
    for person in (ann, ben):
        configure(person, shared / "results", shared / "store", brighter=30)
    assert make(ann) == (3, 2, 0)
    assert "Nothing to be done" in ben.run("--cores", 1)
    assert item_counts(ben.run("--cores", 1, "--config", "again=[all]")) == (5, 0, 0)
    assert "Nothing to be done" in ann.run("--cores", 1)


def test_folders_closed_by_a_umask_are_named_and_opened_as_documented(folder, people):
    ann, ben = people(0o022)
    shared = share(ann, folder / "shared")
    for person in (ann, ben):
        configure(person, person.path("results"), shared / "store")
    assert make(ann) == (5, 0, 0)
    remedy = "let its group write there, as docs/cluster.md describes, or choose another folder in the config"
    sentence = f"error: {shared}/store cannot be written ({shared}/store may not be written by this user): {remedy}"
    assert refusal(ben) == sentence
    run_documented(ann, REPAIR_COMMAND, shared)
    assert make(ben) == (0, 5, 0)


def test_unreadable_store_entries_are_made_again_and_not_changed(folder, people):
    ann, ben = people(0o002)
    shared = share(ann, folder / "shared")
    for person in (ann, ben):
        configure(person, person.path("results"), shared / "store")
    make(ann)
    entries = list((shared / "store").glob("??/*"))
    for entry in entries:
        entry.chmod(0o700)
    before = [file_states(entry) for entry in entries]
    assert make(ben) == (5, 0, 0)
    assert [file_states(entry) for entry in entries] == before


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_results_of_another_user_may_be_read_and_do_not_change(folder, people, umask):
    ann, ben = people(umask)
    configure(ann, ann.path("results"), ann.path("store"))
    make(ann)
    before = file_states(ann.path("results"))
    configure(ben, ann.path("results"), ben.path("store"), brighter=20)
    for option in READ_ONLY:
        assert "Traceback" not in ben.run("--cores", 1, option), option
    assert refusal(ben).startswith(
        f"error: {ann.path('results')} cannot be written ({ann.path('results')} may not be written"
    )
    assert file_states(ann.path("results")) == before


def test_unreadable_files_are_not_reported_as_unwritable(folder, people):
    ann, ben = people(0o002)
    shared = share(ann, folder / "shared")
    configure(ben, shared / "results", shared / "store")
    (folder / "a.mp4").chmod(0o600)
    stderr = ben.run("--cores", 1, fails=1)
    assert f"{folder}/a.mp4 may not be read by this user: mend the path, or its permissions" in stderr
    assert "cannot be written" not in stderr
    (folder / "a.mp4").chmod(0o644)
    make(ben)
    configure(ann, shared / "results", shared / "store", brighter=20)
    demo = shared / "results/demo"
    for path in (demo / "plan.json", shared / "results/weights/grey.json"):
        path.chmod(0o600)
        assert refusal(ann).startswith(f"error: {path} may not be read by this user: make it readable")
        path.chmod(0o664)
    names = (
        "clips.jsonl",
        "a.mp4",
        "a.json",
        ".a.mp4.record",
        "steps/a/l.safetensors",
        "steps/manifests/demo.fused.000.jsonl",
    )
    closed = [demo / name for name in names]
    for path in closed:
        path.chmod(0o600)
    assert make(ann) == (3, 0, 0)
    assert {path.stat().st_uid for path in closed} == {ann.identity["user"]}


def test_missing_and_closed_results_and_store_folders_are_named(folder, people):
    ann, ben = people(0o022)
    for name in ("results", "store"):
        configure(ben, **{**{"results": "results", "store": "store"}, name: "link"})
        ben.path("link").symlink_to("nowhere")
        assert f"{'link' if name == 'store' else 'results'} cannot be written" in refusal(ben)
        ben.path("link").unlink()
    ben.path("link").symlink_to(folder / "closed/results")
    (folder / "closed").mkdir(mode=0o700)
    assert f"is a link to {folder}/closed/results, which cannot be reached (Permission denied)" in refusal(ben)


def test_a_working_folder_of_another_user_and_a_missing_home(folder, people):
    ann, ben = people(0o022)
    for person in (ann, ben):
        configure(person, ben.path("results"), ben.path("store"))
    for option in ([], ["-n"]):
        sentence = refusal(ben, "--directory", ann.folder, *option)
        assert sentence.startswith(
            f"error: {ann.folder}, the working folder, cannot be used ({ann.folder} may not be written"
        )
    assert make(ben, environment={"HOME": "/", "XDG_CACHE_HOME": str(ben.path("cache"))}) == (5, 0, 0)
