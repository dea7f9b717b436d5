"""What a shard promises: neighbours are spared, finished work is kept and reused, failures travel."""

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
from stages.runtime.errors import JobError, UsageError, job_fault
from stages.runtime.items import Item
from stages.runtime.loop import ran_out_of_memory
from stages.runtime.made import read_made
from stages.runtime.model import Model
from stages.runtime.stages import Input
from tests.runtime import toys

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def forget():
    toys.MADE.clear()
    toys.MEANWHILE.clear()


def item(folder: Path, name: str, text: str, **options) -> Item:
    source = folder / f"{name}.txt"
    source.write_text(text)
    options = {"factor": 1, "label": "", "saving": False, "offload": "none", **options}
    return Item(name, {"video": str(source)}, str(folder / "out" / f"{name}.json"), options)


def prompt(folder: Path, name: str) -> str:
    return artifacts.read(folder / "out" / f"{name}.json", ("caption",)).fields["prompt"]


def test_one_bad_item_of_sixteen_fails_alone(tmp_path):
    items = [item(tmp_path, f"clip{n:02d}", "bad" if n == 7 else f"text {n}") for n in range(16)]
    report = toys.loop(tmp_path / "store").run(items)
    assert (report.made, len(report.failures)) == (15, 1)
    assert str(report.failures[0]) == "toy of clip07: the toy is bad: mend it"
    failed = artifacts.read_failure(tmp_path / "out" / "clip07.json")
    assert (failed.stage, failed.item, failed.reason, failed.remedy) == ("toy", "clip07", "the toy is bad", "mend it")
    assert prompt(tmp_path, "clip08") == "text 8"


def test_a_failure_is_passed_on_with_its_first_reason_and_without_work(tmp_path):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "bad")])
    later = Item(
        "a", {"video": str(tmp_path / "out" / "a.json")}, str(tmp_path / "later.json"), item(tmp_path, "b", "").options
    )
    report = toys.loop(tmp_path / "store").run([later])
    assert toys.MADE == []
    assert report.failures == [artifacts.Failure("toy", "a", "the toy is bad", "mend it")]
    assert artifacts.read_failure(tmp_path / "later.json") == report.failures[0]


def test_a_failure_is_not_kept_in_the_store(tmp_path):
    bad = item(tmp_path, "a", "bad")
    toys.loop(tmp_path / "store").run([bad])
    assert not [path for path in (tmp_path / "store").rglob("artifact*")]


def test_without_marking_a_failed_item_leaves_nothing(tmp_path):
    report = toys.loop(tmp_path / "store", mark_failed=False).run([item(tmp_path, "a", "bad")])
    assert len(report.failures) == 1
    assert not (tmp_path / "out").exists()


def test_an_unexpected_error_is_one_sentence(tmp_path, capsys):
    report = toys.loop(tmp_path / "store").run([item(tmp_path, "a", "bug"), item(tmp_path, "b", "fine")])
    assert report.made == 1
    assert report.failures[0].reason == "unexpected ValueError: a bug"
    assert "Traceback" in capsys.readouterr().err  # for the log


def test_finished_work_is_reused_and_says_so(tmp_path, capsys):
    items = [item(tmp_path, name, name) for name in "abc"]
    toys.loop(tmp_path / "store").run(items[:2])
    report = toys.loop(tmp_path / "store").run(items)
    assert (report.made, report.reused, toys.MADE) == (1, 2, ["a", "b", "c"])
    last = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (last["event"], last["made"], last["reused"]) == ("shard", 1, 2)


@pytest.mark.parametrize(
    ("change", "made"), [({"factor": 2}, 2), ({"label": "x"}, 1)], ids=["what changes the result", "what does not"]
)
def test_only_what_changes_the_result_enters_the_key(tmp_path, change, made):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "text")])
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "text", **change)])
    assert len(toys.MADE) == made


def test_equal_inputs_under_other_names_share_their_result(tmp_path):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "same"), item(tmp_path, "b", "same")])
    toys.loop(tmp_path / "store").run([item(tmp_path, "c", "same")])
    assert toys.MADE == ["a"]
    assert prompt(tmp_path, "c") == "same"


def test_another_version_of_the_family_is_another_result(tmp_path):
    toys.loop(tmp_path / "store", version=("family", 1)).run([item(tmp_path, "a", "text")])
    toys.loop(tmp_path / "store", version=("family", 2)).run([item(tmp_path, "a", "text")])
    assert toys.MADE == ["a", "a"]


def test_out_of_memory_is_tried_once_more_with_the_saving_options_and_recorded(tmp_path):
    loop = toys.loop(tmp_path / "store", memory_saving={"saving": True})
    report = loop.run([item(tmp_path, "a", "big"), item(tmp_path, "b", "small")])
    assert (report.made, report.failures) == (2, [])
    records = {
        name: artifacts.read(tmp_path / "out" / f"{name}.json", ("caption",)).provenance[-1]["memory_saving"]
        for name in "ab"
    }
    assert records == {"a": True, "b": False}


def test_out_of_memory_without_a_remedy_is_the_items_failure(tmp_path):
    report = toys.loop(tmp_path / "store").run([item(tmp_path, "a", "big"), item(tmp_path, "b", "small")])
    assert report.made == 1
    assert "memory ran out" in report.failures[0].reason


def test_a_full_disk_ends_the_job_and_marks_nothing(tmp_path):
    with pytest.raises(JobError, match="the disk is full"):
        toys.loop(tmp_path / "store").run([item(tmp_path, "a", "fine"), item(tmp_path, "b", "full")])
    assert prompt(tmp_path, "a") == "fine"
    assert not (tmp_path / "out" / "b.json").exists()


def test_safetensors_own_error_of_a_full_disk_is_told_too():
    from safetensors import SafetensorError

    assert job_fault(SafetensorError("I/O error: No space left on device (os error 28)")) == "the disk is full"
    assert job_fault(SafetensorError("HeaderTooLarge")) == ""


def test_memory_that_ran_out_on_the_cpu_is_told_too():
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert ran_out_of_memory(caught.value)


def test_a_file_that_may_not_be_read_fails_its_item_alone(tmp_path, monkeypatch):
    items = [item(tmp_path, "secret", "text"), item(tmp_path, "open", "text")]
    monkeypatch.setattr(os, "access", lambda path, mode: "secret" not in str(path))
    report = toys.loop(tmp_path / "store").run(items)
    assert report.made == 1
    assert "secret.txt may not be read by this user" in report.failures[0].reason


def become_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def as_nobody(folder, items):
    """The report of a loop where root's rights do not count."""
    toys.loop(folder / "warm").run([item(folder, "warm", "warm")])  # imports what nobody may not be allowed to read
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), become_nobody) as pool:
        return pool.submit(run, folder / "store", items).result()


def run(store, items):
    return toys.loop(store).run(items)


@pytest.fixture
def open_folder():
    """A folder that every user may write to; those of pytest are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        (Path(name) / "out").mkdir()
        (Path(name) / "out").chmod(0o777)
        yield Path(name)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="another user's rights can be taken by root alone")


@needs_root
def test_an_input_in_a_folder_that_may_not_be_searched_fails_its_item_alone(open_folder):
    secret = open_folder / "secret"
    secret.mkdir()
    bad = replace(item(secret, "bad", "text"), output=str(open_folder / "out" / "bad.json"))
    secret.chmod(0o700)
    report = as_nobody(open_folder, [bad, item(open_folder, "good", "text")])
    assert report.made == 1
    assert [failure.reason for failure in report.failures] == [f"{secret}/bad.txt cannot be reached (Permission denied)"]


@needs_root
@pytest.mark.parametrize("kind", ["a damaged entry", "a folder of entries"])
def test_what_another_user_has_in_the_store_and_cannot_be_removed_is_not_used(open_folder, kind, capfd):
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
    report = as_nobody(open_folder, [item(open_folder, "first", "text"), item(open_folder, "more", "more")])
    assert (report.made, report.failures) == (2, [])
    assert prompt(open_folder, "first") == "text" and f"{entry} cannot be written" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["n" * 300, "folder"])
def test_an_input_that_no_file_can_be_fails_its_item_alone(tmp_path, name):
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
    with pytest.raises(UsageError, match="the option is wrong"):  # a command line's own: it ends with that, exit code 2
        toys.loop(tmp_path / "store", mark_failed=False).run(items[:1])


def test_kill_in_the_middle_of_a_shard_of_twelve_loses_at_most_the_item_in_hand(tmp_path):
    items = [item(tmp_path, f"clip{n:02d}", "kill" if n == 5 else f"text {n}") for n in range(12)]
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom tests.runtime import toys\nfrom stages.runtime.items import Item\n"
        "toys.loop(Path(sys.argv[1])).run([Item(**row) for row in json.load(sys.stdin)])"
    )
    rows = json.dumps([asdict(entry) for entry in items])
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    done = subprocess.run(command, input=rows, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -9
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"clip{n:02d}.json" for n in range(5)]
    (tmp_path / "clip05.txt").write_text("text 5")
    report = toys.loop(tmp_path / "store").run(items)
    assert (report.made, report.reused) == (7, 5)
    assert [f"clip{n:02d}" for n in range(5, 12)] == toys.MADE
    assert [prompt(tmp_path, entry.id) for entry in items] == [f"text {n}" for n in range(12)]


def test_provenance_says_how_to_make_it_again_and_does_not_change_the_digest(tmp_path):
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


# ------------------------------------------------------------------------------------- what changes under the work


def replaced_and_back(path: Path):
    """As a person does who tries another file for a moment, and puts the old one back with its size and its time."""

    def swap() -> None:
        path.rename(path.with_suffix(".old"))
        path.write_text("other")
        path.unlink()
        path.with_suffix(".old").rename(path)

    return swap


def test_an_item_whose_input_changed_under_it_is_begun_again(tmp_path, capsys):
    clip = item(tmp_path, "a", "text")
    source = Path(clip.inputs["video"])
    toys.MEANWHILE[:] = [replaced_and_back(source)]
    report = toys.loop(tmp_path / "store").run([clip, item(tmp_path, "b", "more")])
    assert toys.MADE == ["a", "a", "b"] and report.made == 2
    assert f"{source} changed while it was read" in capsys.readouterr().err
    assert prompt(tmp_path, "a") == "text"


def test_an_input_that_never_rests_fails_its_item_alone_and_enters_no_store(tmp_path):
    clip = item(tmp_path, "a", "text")
    source = Path(clip.inputs["video"])
    toys.MEANWHILE[:] = [lambda: source.write_text("new"), lambda: source.write_text("newer")]
    report = toys.loop(tmp_path / "store").run([clip, item(tmp_path, "b", "more")])
    assert [failure.reason for failure in report.failures] == [f"{source} changed while it was read"]
    assert report.made == 1 and len([*(tmp_path / "store").rglob("artifact.json")]) == 1


def test_the_item_is_made_of_what_is_there_when_it_is_begun_again(tmp_path):
    clip = item(tmp_path, "a", "text")
    toys.MEANWHILE[:] = [lambda: Path(clip.inputs["video"]).write_text("new")]
    toys.loop(tmp_path / "store").run([clip])
    assert prompt(tmp_path, "a") == "new"
    Path(clip.inputs["video"]).write_text("text")
    toys.loop(tmp_path / "store").run([clip])
    assert prompt(tmp_path, "a") == "text"  # nothing wrong lies under its key


def test_weights_that_change_under_the_work_are_loaded_again(tmp_path):
    weights = tmp_path / "model" / "weights.bin"
    weights.parent.mkdir()
    weights.write_text("old")
    model = Model("toy", "toys", path=str(weights.parent))
    toys.MEANWHILE[:] = [lambda: weights.write_text("new")]
    report = toys.loop(tmp_path / "store", model=model, weights=("*.bin",)).run([item(tmp_path, "a", "text")])
    assert (report.made, report.loads) == (1, 2)
    (record,) = artifacts.read(tmp_path / "out" / "a.json", ("caption",)).provenance
    assert record["weights"] == model.digest(["*.bin"])


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_text("weights")
    return {"model": Model("toy", "toys", path=str(tmp_path / "model")), "weights": ("*.bin",)}


def test_what_a_library_says_while_it_loads_a_model_is_the_model_s_fault(model, tmp_path, monkeypatch):
    def load(worker, options, phase):
        raise TypeError("'>' not supported\nbetween these")

    monkeypatch.setattr(toys.Toy, "load", load)
    loop = toys.loop(tmp_path / "store", **model)
    with pytest.raises(
        JobError, match="the weights of model toy in .* are not whole .'>' not supported.: copy it again"
    ) as caught:
        loop.run([item(tmp_path, "a", "text")])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    loop.running = replace(loop.running, debug=True)
    with pytest.raises(TypeError):
        loop.run([item(tmp_path, "a", "text")])


def test_after_a_load_that_failed_the_model_is_loaded_again(model, tmp_path, monkeypatch):
    loads = []

    def load(worker, options, phase):
        loads.append(options["saving"])
        if options["saving"]:
            raise MemoryError

    monkeypatch.setattr(toys.Toy, "load", load)
    options = [replace(option, reloads=option.name == "saving") for option in toys.OPTIONS]
    loop = toys.loop(tmp_path / "store", options=options, memory_saving={"saving": True}, **model)
    report = loop.run([item(tmp_path, "a", "big"), item(tmp_path, "b", "fine")])
    assert loads == [False, True, False] and report.made == 1


def test_an_unexpected_error_at_work_names_the_model(model, tmp_path):
    report = toys.loop(tmp_path / "store", **model).run([item(tmp_path, "a", "bug"), item(tmp_path, "b", "fine")])
    assert report.made == 1
    assert report.failures[0].remedy.startswith(
        f"see that model toy in {tmp_path / 'model'} is as it was published (copy it"
    )


@pytest.mark.parametrize("times", [1, 2])
def test_the_store_may_be_removed_while_an_item_is_in_hand(tmp_path, times):
    store = tmp_path / "store"
    toys.MEANWHILE[:] = [lambda: shutil.rmtree(store)] * times
    report = toys.loop(store).run([item(tmp_path, "a", "text"), item(tmp_path, "b", "more")])
    assert report.made == 2 - (times == 2)
    assert all("was removed while it was in use" in failure.reason for failure in report.failures)
    assert prompt(tmp_path, "b") == "more"


# ------------------------------------------------------------------------------------------------- what was made of what


def planned(one: Item, **inputs) -> Item:
    """An item as a plan hands it out."""
    return replace(one, fingerprint=f"work on {one.id}", inputs={**one.inputs, **inputs})


def test_a_result_has_a_record_of_the_work_and_of_all_sources_before_it(tmp_path):
    first = planned(item(tmp_path, "a", "text"))
    toys.loop(tmp_path / "store").run([first])
    second = replace(first, id="b", fingerprint="work on b", inputs={"video": first.output}, output=str(tmp_path / "b.json"))
    toys.loop(tmp_path / "store").run([second])
    made = read_made(tmp_path / "b.json")
    sources = [(first.inputs["video"], hashlib.sha256(b"text").hexdigest())]
    assert (made.fingerprint, made.sources) == ("work on b", sources)
    assert made.files["b.json"][2] == hashlib.sha256((tmp_path / "b.json").read_bytes()).hexdigest()
    assert made.changed(tmp_path / "b.json") == [] and made.has_sources([first.inputs["video"]])
    os.utime(tmp_path / "b.json", (0, 0))
    assert made.changed(tmp_path / "b.json") == []
    (tmp_path / "b.json").write_text("{}")
    assert made.changed(tmp_path / "b.json") == ["b.json"]


def test_an_item_by_hand_leaves_no_record(tmp_path):
    toys.loop(tmp_path / "store").run([item(tmp_path, "a", "text")])
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "a.json"]


def test_a_source_that_is_replaced_between_two_stages_fails_the_second(tmp_path):
    """The continuation of one video would follow another one."""
    stage = replace(toys.STAGE, inputs=(*toys.STAGE.inputs, Input("front", ("file",), "a text file")))
    first = planned(item(tmp_path, "a", "text"))
    toys.loop(tmp_path / "store").run([first])
    source = Path(first.inputs["video"])
    inputs = {"video": first.output, "front": str(source)}
    second = replace(first, id="b", inputs=inputs, output=str(tmp_path / "b.json"))
    loop = toys.loop(tmp_path / "store")
    loop.plant = replace(loop.plant, stage=stage)
    source.write_text("another")
    (failure,) = loop.run([second]).failures
    assert failure.reason == f"{source} was replaced after an earlier stage had read it"
    source.write_text("text")
    loop = toys.loop(tmp_path / "store")
    loop.plant = replace(loop.plant, stage=stage)
    assert loop.run([second]).made == 1


def test_an_item_that_is_to_be_made_again_takes_the_place_of_the_stored_one(tmp_path):
    one = planned(item(tmp_path, "a", "text"))
    toys.loop(tmp_path / "store").run([one])
    (entry,) = (tmp_path / "store").glob("*/*/seal.json")
    before = entry.stat().st_ino
    report = toys.loop(tmp_path / "store").run([replace(one, again=True)])
    assert (report.made, report.reused, toys.MADE) == (1, 0, ["a", "a"])
    assert entry.stat().st_ino != before
