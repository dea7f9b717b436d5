"""The item loop of a shard: a failed item spares the others, finished work is reused, failures are passed on."""

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stages.runtime import artifacts
from stages.runtime.errors import JobError, UsageError
from stages.runtime.faults import job_fault, ran_out_of_memory
from stages.runtime.items import Item
from stages.runtime.lineage import Lineage, Origin
from stages.runtime.model import Model
from stages.runtime.result_record import read_record
from stages.runtime.stages import Input
from stages.runtime.store import Store
from tests.runtime import toys

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def reset_toys():
    toys.FINISHED.clear()
    toys.DURING_RUN.clear()


def item(folder: Path, name: str, text: str, **options) -> Item:
    source = folder / f"{name}.txt"
    source.write_text(text)
    options = {"factor": 1, "label": "", "saving": False, "offload": "none", **options}
    return Item(name, {"video": str(source)}, str(folder / "out" / f"{name}.json"), options)


def planned(one: Item, weights=(), after: Item | None = None) -> Item:
    """The item as a plan issues it, without a model or with "toy". `after` is a planned item whose output it reads."""
    model = tuple((name, toys.STAGE.name) for name in weights)
    if after is None:
        origins = (Origin("", [0], []),)
        return replace(one, lineage=Lineage(f"work on {one.id}", (one.inputs["video"],), model, origins))
    before = after.lineage
    origins = (Origin(before.fingerprint, [0], range(len(before.weights))),)
    origins += tuple(Origin("", [0], []) for _ in range(len(one.files) - 1))
    return replace(one, lineage=Lineage(f"work on {one.id}", before.sources, before.weights or model, origins))


def follow(first: Item, folder: Path, weights=(), **inputs) -> Item:
    """A planned item "b" that reads the output of a planned item."""
    second = replace(first, id="b", inputs={"video": first.output, **inputs}, output=str(folder / "b.json"))
    return planned(second, weights, after=first)


def prompt(folder: Path, name: str) -> str:
    return artifacts.read(folder / "out" / f"{name}.json", ("caption",)).fields["prompt"]


def test_one_bad_item_of_sixteen_fails_alone(tmp_path):
    items = [item(tmp_path, f"clip{n:02d}", "bad" if n == 7 else f"text {n}") for n in range(16)]
    report = toys.loop(tmp_path / "store").run(items)
    assert (report.made, len(report.failures)) == (15, 1)
    assert str(report.failures[0]) == "toy of clip07: the toy is bad: mend it"
    failure = artifacts.read_failure(tmp_path / "out" / "clip07.json")
    assert (failure.stage, failure.item, failure.reason, failure.remedy) == ("toy", "clip07", "the toy is bad", "mend it")
    assert prompt(tmp_path, "clip08") == "text 8"


def test_a_failed_input_passes_its_first_reason_on_without_work(tmp_path):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "bad")])
    later = Item(
        "a", {"video": str(tmp_path / "out" / "a.json")}, str(tmp_path / "later.json"), item(tmp_path, "b", "").options
    )
    report = toys.loop(tmp_path / "store").run([later])
    assert toys.FINISHED == []
    assert report.failures == [artifacts.Failure("toy", "a", "the toy is bad", "mend it")]
    assert artifacts.read_failure(tmp_path / "later.json") == report.failures[0]


def test_an_item_is_made_without_an_input_that_may_fail_and_the_next_plan_knows(tmp_path, capsys):
    """Also of what is made of it, in whose record another input has the digest that the failure does not know."""
    first = planned(item(tmp_path, "a", "bad"))
    toys.loop(tmp_path / "store").run([first])
    video, caption = (
        Input("video", ("file", "caption"), "a text file or a caption"),
        Input("more", ("caption",), "a caption"),
    )
    lenient = replace(toys.STAGE, inputs=(replace(video, may_fail=True), caption))
    second = follow(first, tmp_path)
    report = toys.loop(tmp_path / "store", stage=lenient).run([second])
    assert (report.made, report.failures) == (1, []) and not read_record(tmp_path / "b.json").whole
    assert '"reason": "made without a, which failed in toy: the toy is bad", "remedy": "mend it"' in capsys.readouterr().err

    other = replace(first, id="c", output=str(tmp_path / "c.json"), options={**first.options, "factor": 2})
    (tmp_path / "a.txt").write_text("good")
    toys.loop(tmp_path / "store").run([other])
    known = Origin(first.lineage.fingerprint, [0], [])
    lineage = Lineage("work on d", first.lineage.sources, (), (Origin("work on b", [0], []), known))
    inputs = {"video": second.output, "more": other.output}
    last = replace(second, id="d", inputs=inputs, output=str(tmp_path / "d.json"), lineage=lineage)
    assert toys.loop(tmp_path / "store", stage=lenient).run([last]).made == 1
    record = read_record(tmp_path / "d.json")
    assert not record.whole and record.sources == [(first.inputs["video"], hashlib.sha256(b"good").hexdigest())]

    toys.loop(tmp_path / "store").run([first])
    toys.loop(tmp_path / "store", stage=lenient).run([second])
    assert read_record(tmp_path / "b.json").whole


def test_a_failure_does_not_enter_the_store(tmp_path):
    bad = item(tmp_path, "a", "bad")
    toys.loop(tmp_path / "store").run([bad])
    assert not [path for path in (tmp_path / "store").rglob("artifact*")]


def test_a_failed_item_writes_nothing_without_mark_failed(tmp_path):
    report = toys.loop(tmp_path / "store", mark_failed=False).run([item(tmp_path, "a", "bad")])
    assert len(report.failures) == 1
    assert not (tmp_path / "out").exists()


def test_an_unexpected_error_of_an_item_is_one_sentence(tmp_path, capsys):
    report = toys.loop(tmp_path / "store").run([item(tmp_path, "a", "bug"), item(tmp_path, "b", "fine")])
    assert report.made == 1
    assert report.failures[0].reason == "unexpected ValueError: a bug"
    assert "Traceback" in capsys.readouterr().err  # for the log


def test_finished_items_are_reused_and_counted_in_the_log(tmp_path, capsys):
    items = [item(tmp_path, name, name) for name in "abc"]
    toys.loop(tmp_path / "store").run(items[:2])
    report = toys.loop(tmp_path / "store").run(items)
    assert (report.made, report.reused, toys.FINISHED) == (1, 2, ["a", "b", "c"])
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["event"], last["made"], last["reused"]) == ("shard", 1, 2)


@pytest.mark.parametrize(
    ("change", "runs"), [({"factor": 2}, 2), ({"label": "x"}, 1)], ids=["what changes the result", "what does not"]
)
def test_store_key_depends_only_on_options_that_change_the_result(tmp_path, change, runs):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "text")])
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "text", **change)])
    assert len(toys.FINISHED) == runs


def test_inputs_of_equal_content_share_a_stored_result(tmp_path):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "same"), item(tmp_path, "b", "same")])
    toys.loop(tmp_path / "store").run([item(tmp_path, "c", "same")])
    assert toys.FINISHED == ["a"]
    assert prompt(tmp_path, "c") == "same"


def test_store_key_depends_on_the_version_of_the_family(tmp_path):
    toys.loop(tmp_path / "store", family_version=1).run([item(tmp_path, "a", "text")])
    toys.loop(tmp_path / "store", family_version=2).run([item(tmp_path, "a", "text")])
    assert toys.FINISHED == ["a", "a"]


def test_an_item_out_of_memory_is_retried_with_the_saving_options_and_recorded(tmp_path):
    loop = toys.loop(tmp_path / "store", on_out_of_memory={"saving": True})
    report = loop.run([item(tmp_path, "a", "big"), item(tmp_path, "b", "small")])
    assert (report.made, report.failures) == (2, [])
    records = {
        name: artifacts.read(tmp_path / "out" / f"{name}.json", ("caption",)).provenance[-1]["memory_saving"]
        for name in "ab"
    }
    assert records == {"a": True, "b": False}


def test_an_item_out_of_memory_fails_where_no_option_saves_memory(tmp_path):
    report = toys.loop(tmp_path / "store").run([item(tmp_path, "a", "big"), item(tmp_path, "b", "small")])
    assert report.made == 1
    assert "memory ran out" in report.failures[0].reason


def test_a_full_disk_ends_the_job_and_marks_no_item(tmp_path):
    with pytest.raises(JobError, match="the disk is full"):
        toys.loop(tmp_path / "store").run([item(tmp_path, "a", "fine"), item(tmp_path, "b", "full")])
    assert prompt(tmp_path, "a") == "fine"
    assert not (tmp_path / "out" / "b.json").exists()


def test_job_fault_knows_the_full_disk_error_of_safetensors():
    from safetensors import SafetensorError

    assert job_fault(SafetensorError("I/O error: No space left on device (os error 28)")) == "the disk is full"
    assert job_fault(SafetensorError("HeaderTooLarge")) == ""


def test_ran_out_of_memory_knows_the_cpu_error_of_torch():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)


def test_an_unreadable_input_fails_its_item_alone(tmp_path, monkeypatch):
    items = [item(tmp_path, "secret", "text"), item(tmp_path, "open", "text")]
    monkeypatch.setattr(os, "access", lambda path, mode: "secret" not in str(path))
    report = toys.loop(tmp_path / "store").run(items)
    assert report.made == 1
    assert "secret.txt may not be read by this user" in report.failures[0].reason


def become_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def run_as_nobody(folder, items):
    """The report of a loop that runs without the rights of root."""
    toys.loop(folder / "warm").run([item(folder, "warm", "warm")])  # imports modules that nobody may be unable to read
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), become_nobody) as pool:
        return pool.submit(run_loop, folder / "store", items).result()


def run_loop(store, items):
    return toys.loop(store).run(items)


@pytest.fixture
def open_folder():
    """A folder that every user may write to; the folders of pytest are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        (Path(name) / "out").mkdir()
        (Path(name) / "out").chmod(0o777)
        yield Path(name)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="another user's rights can be taken by root alone")


@needs_root
def test_an_input_in_an_unsearchable_folder_fails_its_item_alone(open_folder):
    secret = open_folder / "secret"
    secret.mkdir()
    bad = replace(item(secret, "bad", "text"), output=str(open_folder / "out" / "bad.json"))
    secret.chmod(0o700)
    report = run_as_nobody(open_folder, [bad, item(open_folder, "good", "text")])
    assert report.made == 1
    assert [failure.reason for failure in report.failures] == [f"{secret}/bad.txt cannot be reached (Permission denied)"]


@needs_root
@pytest.mark.parametrize("kind", ["a damaged entry", "a folder of entries"])
def test_damaged_store_entries_of_another_user_are_not_used(open_folder, kind, capfd):
    store = open_folder / "store"
    toys.loop(store).run([item(open_folder, "first", "text")])
    (entry,) = store.glob("??/*")
    if kind == "a damaged entry":
        (entry / "artifact.json").chmod(0o644)
        (entry / "artifact.json").write_text("bad")
        for folder in (store, store / "staging", store / "partial", entry.parent):
            folder.chmod(0o1777)
    else:
        shutil.rmtree(entry)
        for folder in (store, store / "staging", store / "partial"):
            folder.chmod(0o777)
    report = run_as_nobody(open_folder, [item(open_folder, "first", "text"), item(open_folder, "more", "more")])
    assert (report.made, report.failures) == (2, [])
    assert prompt(open_folder, "first") == "text" and f"{entry} cannot be written" in capfd.readouterr().err


@needs_root
def test_a_store_entry_with_an_unreadable_folder_counts_as_absent(open_folder, capfd):
    """Otherwise its files there would count as missing, and the entry as damaged."""
    store = Store(open_folder / "store")
    with store.staging() as folder:
        (folder / "artifact").mkdir(mode=0o700)
        (folder / "artifact" / "000001.png").write_text("one")
        store.put("abcd", folder)
    for folder in (store.root, store.root / "ab", store.root / "staging", store.entry("abcd")):
        folder.chmod(0o777)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), become_nobody) as pool:
        assert pool.submit(store.find, "abcd").result() is None
    assert "damaged" not in capfd.readouterr().err
    assert store.find("abcd")


@needs_root
def test_partial_work_of_another_user_is_not_changed(open_folder):
    """This holds also if the file is closed to other users and the item is finished meanwhile."""
    store = open_folder / "store"
    toys.loop(store).run([item(open_folder, "first", "text")])
    for folder in store.rglob("*"):
        folder.chmod(0o777)
    store.chmod(0o777)
    (entry,) = store.glob("??/*")
    shutil.rmtree(entry)
    states = [Store(store).partial(entry.name)]
    states[0].write_text("mine")
    states[0].chmod(0o600)
    assert run_as_nobody(open_folder, [item(open_folder, "first", "text")]).made == 1
    assert states[0].read_text() == "mine"


@pytest.mark.parametrize("name", ["n" * 300, "folder"])
def test_an_input_path_that_cannot_be_a_file_fails_its_item_alone(tmp_path, name):
    (tmp_path / "folder").mkdir()
    bad = replace(item(tmp_path, "bad", "text"), inputs={"video": str(tmp_path / name)})
    report = toys.loop(tmp_path / "store").run([bad, item(tmp_path, "good", "text")])
    assert report.made == 1
    assert report.failures[0].reason.endswith(
        "cannot be reached (File name too long)" if "n" * 300 in name else "is no file"
    )


def test_an_option_that_a_worker_refuses_fails_its_item_alone(tmp_path):
    items = [item(tmp_path, "a", "refused"), item(tmp_path, "b", "fine")]
    report = toys.loop(tmp_path / "store").run(items)
    assert report.made == 1 and report.failures[0].reason == "the option is wrong"
    with pytest.raises(UsageError, match="the option is wrong"):  # on a command line it is a usage error, exit code 2
        toys.loop(tmp_path / "store", mark_failed=False).run(items[:1])


def test_a_killed_shard_of_twelve_loses_at_most_the_current_item(tmp_path):
    items = [item(tmp_path, f"clip{n:02d}", "kill" if n == 5 else f"text {n}") for n in range(12)]
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom tests.runtime import toys\nfrom stages.runtime.items import Item\n"
        "toys.loop(Path(sys.argv[1])).run([Item(**row) for row in json.load(sys.stdin)])"
    )
    rows = json.dumps([asdict(entry) for entry in items])
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    process = subprocess.run(command, input=rows, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.returncode == -9
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"clip{n:02d}.json" for n in range(5)]
    (tmp_path / "clip05.txt").write_text("text 5")
    report = toys.loop(tmp_path / "store").run(items)
    assert (report.made, report.reused) == (7, 5)
    assert [f"clip{n:02d}" for n in range(5, 12)] == toys.FINISHED
    assert [prompt(tmp_path, entry.id) for entry in items] == [f"text {n}" for n in range(12)]


def test_provenance_has_options_and_inputs_and_does_not_change_the_digest(tmp_path):
    toys.loop(tmp_path / "one").run([item(tmp_path, "a", "text", factor=3)])
    first = artifacts.read(tmp_path / "out" / "a.json", ("caption",))
    (record,) = first.provenance
    assert record["options"]["factor"] == 3
    assert record["inputs"]["video"] == [
        "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    ]  # sha256 of "text"
    assert {"seconds", "peak_memory_bytes", "program"} <= set(record)
    toys.loop(tmp_path / "two").run([item(tmp_path, "a", "text", factor=3)])
    second = artifacts.read(tmp_path / "out" / "a.json", ("caption",))
    assert second.digest == first.digest


def test_a_reused_item_has_the_paths_and_model_name_of_its_own_run(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "weights.bin").write_text("weights")
    results = []
    for run, name in (("one", "first"), ("two", "second")):
        (tmp_path / run).mkdir()
        model = Model(name, "toys", path=str(weights))
        early = planned(item(tmp_path / run, f"{name}_clip", "text"), weights=[name])
        later = replace(early, inputs={"video": early.output}, output=str(tmp_path / run / "out" / "later.json"))
        later = planned(later, after=early)
        loop = toys.loop(tmp_path / "store", model=model, weights=("*.bin",))
        loop.run([early])
        report = loop.run([later])
        assert (report.made, report.reused) == ((2, 0) if run == "one" else (0, 2))
        artifact = artifacts.read(Path(later.output), ("caption",))
        assert [record["files"] for record in artifact.provenance] == [[early.inputs["video"]], [early.output]]
        assert [record["model"]["name"] for record in artifact.provenance] == [name] * 2
        assert run == "one" or artifact.fields["model"] == name  # the toy itself writes none
        assert not read_record(Path(later.output)).changed(Path(later.output))
        results.append(artifact)
    assert results[0].digest == results[1].digest
    same_facts = ("key", "inputs", "weights", "seconds", "program")
    assert [[record[fact] for fact in same_facts] for record in results[0].provenance] == [
        [record[fact] for fact in same_facts] for record in results[1].provenance
    ]


def test_an_item_that_another_process_finished_first_has_its_own_paths(tmp_path):
    first, second = (planned(item(tmp_path, name, "text")) for name in "ab")
    toys.DURING_RUN[:] = [lambda: toys.loop(tmp_path / "store").run([second])]
    assert toys.loop(tmp_path / "store").run([first]).made == 1
    for one in (first, second):
        (record,) = artifacts.read(Path(one.output), ("caption",)).provenance
        assert record["files"] == one.files


# ---------------------------------------------------------------------------------- inputs that change during the work


def replace_and_restore(path: Path):
    """A function that replaces a file for a moment and restores the old one with its size and time."""

    def swap() -> None:
        path.rename(path.with_suffix(".old"))
        path.write_text("other")
        path.unlink()
        path.with_suffix(".old").rename(path)

    return swap


def test_an_item_whose_input_changed_meanwhile_is_started_again(tmp_path, capsys):
    clip = item(tmp_path, "a", "text")
    source = Path(clip.inputs["video"])
    toys.DURING_RUN[:] = [replace_and_restore(source)]
    report = toys.loop(tmp_path / "store").run([clip, item(tmp_path, "b", "more")])
    assert toys.FINISHED == ["a", "a", "b"] and report.made == 2
    assert f"{source} changed while it was read" in capsys.readouterr().err
    assert prompt(tmp_path, "a") == "text"


@pytest.mark.parametrize("kind", ["link", "link to a folder", "folder"])
def test_an_input_on_another_way_for_a_moment_is_read_again(tmp_path, capsys, kind):
    """The file itself stays as it is: a link or a folder leads to another one for a moment."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    one = item(tmp_path, "a", "text")
    ways = {
        "link": ("a.txt", "one/a.txt", "two/a.txt"),
        "link to a folder": ("way", "one", "two"),
        "folder": ("one", "", ""),
    }
    way, target, other = (tmp_path / path for path in ways[kind])
    source = way if kind == "link" else way / "a.txt"
    if kind == "folder":
        replacements = [lambda: way.rename(tmp_path / "kept"), lambda: (tmp_path / "kept").rename(way)]
    else:
        way.unlink(missing_ok=True)
        way.symlink_to(target)
        replacements = [lambda: (way.unlink(), way.symlink_to(other)), lambda: (way.unlink(), way.symlink_to(target))]
    toys.DURING_RUN[:] = [lambda: [change() for change in replacements]]
    assert toys.loop(tmp_path / "store").run([replace(one, inputs={"video": str(source)})]).made == 1
    assert "changed while it was read" in capsys.readouterr().err and toys.FINISHED == ["a", "a"]


def test_an_input_that_keeps_changing_fails_its_item_and_enters_no_store(tmp_path):
    clip = item(tmp_path, "a", "text")
    source = Path(clip.inputs["video"])
    toys.DURING_RUN[:] = [lambda: source.write_text("new"), lambda: source.write_text("newer")]
    report = toys.loop(tmp_path / "store").run([clip, item(tmp_path, "b", "more")])
    assert [failure.reason for failure in report.failures] == [f"{source} changed while it was read"]
    assert report.made == 1 and len([*(tmp_path / "store").rglob("artifact.json")]) == 1


def test_an_item_that_is_started_again_reads_the_new_input(tmp_path):
    clip = item(tmp_path, "a", "text")
    toys.DURING_RUN[:] = [lambda: Path(clip.inputs["video"]).write_text("new")]
    toys.loop(tmp_path / "store").run([clip])
    assert prompt(tmp_path, "a") == "new"
    Path(clip.inputs["video"]).write_text("text")
    toys.loop(tmp_path / "store").run([clip])
    assert prompt(tmp_path, "a") == "text"  # the store has no wrong result under its key


def test_weights_that_change_meanwhile_are_loaded_again(tmp_path):
    weights = tmp_path / "model" / "weights.bin"
    weights.parent.mkdir()
    weights.write_text("old")
    model = Model("toy", "toys", path=str(weights.parent))
    toys.DURING_RUN[:] = [lambda: weights.write_text("new")]
    report = toys.loop(tmp_path / "store", model=model, weights=("*.bin",)).run([item(tmp_path, "a", "text")])
    assert (report.made, report.loads) == (1, 2)
    (record,) = artifacts.read(tmp_path / "out" / "a.json", ("caption",)).provenance
    assert record["weights"] == model.digest(["*.bin"])


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_text("weights")
    return {"model": Model("toy", "toys", path=str(tmp_path / "model")), "weights": ("*.bin",)}


def test_an_error_of_a_library_while_loading_blames_the_model(model, tmp_path, monkeypatch):
    def load(worker, options):
        raise TypeError("'>' not supported\nbetween these")

    monkeypatch.setattr(toys.Toy, "load", load)
    loop = toys.loop(tmp_path / "store", **model)
    with pytest.raises(
        JobError, match="the weights of model toy in .* are not whole .'>' not supported.: copy it again"
    ) as caught:
        loop.run([item(tmp_path, "a", "text")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    loop.settings = replace(loop.settings, debug=True)
    with pytest.raises(TypeError):
        loop.run([item(tmp_path, "a", "text")])


def test_the_model_is_loaded_again_after_a_failed_load(model, tmp_path, monkeypatch):
    loads = []

    def load(worker, options):
        loads.append(options.saving)
        if options.saving:
            raise MemoryError

    monkeypatch.setattr(toys.Toy, "load", load)

    class Reloading(toys.ToyOptions):
        saving: bool = toys.ToyOptions.redeclared("saving", reloads=True)

    loop = toys.loop(tmp_path / "store", options=Reloading, on_out_of_memory={"saving": True}, **model)
    report = loop.run([item(tmp_path, "a", "big"), item(tmp_path, "b", "fine")])
    assert loads == [False, True, False] and report.made == 1


def test_the_remedy_of_an_unexpected_error_names_the_model(model, tmp_path):
    report = toys.loop(tmp_path / "store", **model).run([item(tmp_path, "a", "bug"), item(tmp_path, "b", "fine")])
    assert report.made == 1
    assert report.failures[0].remedy.startswith(
        f"see that model toy in {tmp_path / 'model'} is as it was published (copy it"
    )


@pytest.mark.parametrize("times", [1, 2])
def test_the_store_may_be_removed_while_an_item_runs(tmp_path, times):
    store = tmp_path / "store"
    toys.DURING_RUN[:] = [lambda: shutil.rmtree(store)] * times
    report = toys.loop(store).run([item(tmp_path, "a", "text"), item(tmp_path, "b", "more")])
    assert report.made == 2 - (times == 2)
    assert all("was removed while it was in use" in failure.reason for failure in report.failures)
    assert prompt(tmp_path, "b") == "more"


# ------------------------------------------------------------------------------------------------------ result records


def test_a_result_record_has_the_fingerprint_and_all_earlier_sources(tmp_path):
    first = planned(item(tmp_path, "a", "text"))
    toys.loop(tmp_path / "store").run([first])
    toys.loop(tmp_path / "store").run([follow(first, tmp_path)])
    record = read_record(tmp_path / "b.json")
    sources = [(first.inputs["video"], hashlib.sha256(b"text").hexdigest())]
    assert (record.fingerprint, record.sources) == ("work on b", sources)
    assert record.files["b.json"][2] == hashlib.sha256((tmp_path / "b.json").read_bytes()).hexdigest()
    assert record.changed(tmp_path / "b.json") == [] and record.has_sources([first.inputs["video"]])
    os.utime(tmp_path / "b.json", (0, 0))
    assert record.changed(tmp_path / "b.json") == []
    (tmp_path / "b.json").write_text("{}")
    assert record.changed(tmp_path / "b.json") == ["b.json"]


def test_a_result_record_has_the_weights_of_all_earlier_stages(tmp_path, model):
    first = planned(item(tmp_path, "a", "text"), ["toy"])
    toys.loop(tmp_path / "store", **model).run([first])
    toys.loop(tmp_path / "store", **model).run([follow(first, tmp_path)])
    digest = model["model"].digest(["*.bin"])
    record = read_record(tmp_path / "b.json")
    assert record.weights == [(f"toy for {toys.STAGE.name}", digest)]
    assert record.has_weights([digest]) and record.has_weights([""])
    assert not record.has_weights(["another"]) and not record.has_weights([]) and not record.has_weights([digest, digest])


def test_weights_replaced_between_two_items_of_a_film_fail_the_second(tmp_path, model):
    first = planned(item(tmp_path, "a", "text"), ["toy"])
    toys.loop(tmp_path / "store", **model).run([first])
    (tmp_path / "model/weights.bin").write_text("others")
    (failure,) = toys.loop(tmp_path / "store", **model).run([follow(first, tmp_path)]).failures
    assert failure.reason == f"toy for {toys.STAGE.name} was replaced after an earlier item had read it"


def test_an_item_by_hand_writes_no_result_record(tmp_path):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "text")])
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "a.json"]


def test_a_source_replaced_between_two_stages_fails_the_second(tmp_path):
    """Otherwise the continuation of one video would follow another video."""
    stage = replace(toys.STAGE, inputs=(*toys.STAGE.inputs, Input("front", ("file",), "a text file")))
    first = planned(item(tmp_path, "a", "text"))
    toys.loop(tmp_path / "store").run([first])
    source = Path(first.inputs["video"])
    second = follow(first, tmp_path, front=str(source))
    loop = toys.loop(tmp_path / "store", stage=stage)
    source.write_text("another")
    (failure,) = loop.run([second]).failures
    assert failure.reason == f"{source} was replaced after an earlier item had read it"
    source.write_text("text")
    loop = toys.loop(tmp_path / "store", stage=stage)
    assert loop.run([second]).made == 1


def test_an_input_that_another_run_replaced_fails_the_item(tmp_path):
    """A job that outlives its run may publish an older result in the place of a new one."""
    first = planned(item(tmp_path, "a", "text"))
    toys.loop(tmp_path / "store").run([first])
    older = replace(first, options={**first.options, "factor": 2}, lineage=replace(first.lineage, fingerprint="older"))
    toys.loop(tmp_path / "store").run([older])
    second = follow(first, tmp_path)
    (failure,) = toys.loop(tmp_path / "store").run([second]).failures
    assert failure.reason == f"{first.output} is not what the plan of this run knows"
    toys.loop(tmp_path / "store").run([replace(first, options=older.options, lineage=None)])  # by hand, no record
    assert toys.loop(tmp_path / "store").run([second]).failures
    assert not (tmp_path / ".b.json.record").exists()


def test_a_record_has_the_names_of_the_plan(tmp_path, model):
    """A source and a model may have got other names after an earlier stage had read them."""
    first = planned(item(tmp_path, "a", "text"), ["toy"])
    toys.loop(tmp_path / "store", **model).run([first])
    renamed = Path(first.inputs["video"]).rename(tmp_path / "renamed.txt")
    lineage = Lineage("work on a", (str(renamed),), (("new", toys.STAGE.name),), first.lineage.origins)
    stage = replace(toys.STAGE, inputs=(*toys.STAGE.inputs, Input("front", ("file",), "a text file")))
    loop = toys.loop(tmp_path / "store", **{**model, "model": replace(model["model"], name="new")}, stage=stage)
    assert loop.run([follow(replace(first, lineage=lineage), tmp_path, front=str(renamed))]).made == 1
    record = read_record(tmp_path / "b.json")
    assert [name for name, _ in record.sources] == [str(renamed)]
    assert [name for name, _ in record.weights] == [f"new for {toys.STAGE.name}"]


def test_an_item_with_again_replaces_the_stored_result(tmp_path):
    first = planned(item(tmp_path, "a", "text"))
    toys.loop(tmp_path / "store").run([first])
    (entry,) = (tmp_path / "store").glob("*/*/seal.json")
    before = entry.stat().st_ino
    report = toys.loop(tmp_path / "store").run([replace(first, again=True)])
    assert (report.made, report.reused, toys.FINISHED) == (1, 0, ["a", "a"])
    assert entry.stat().st_ino != before
