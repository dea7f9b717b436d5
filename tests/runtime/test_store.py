"""The store publishes whole items, is changed by nothing that becomes of them, and gives out only what was put."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import socket
import time

import pytest

from stages.runtime import store as stores
from stages.runtime.errors import ItemError
from stages.runtime.store import Store, StoreRemoved, publish


def put(store: Store, key: str, text: str):
    with store.staging() as folder:
        (folder / "artifact").mkdir()
        (folder / "artifact" / "000001.png").write_text(text)
        (folder / "artifact.last.png").write_text(text)
        (folder / "artifact.mkv").write_text(text)
        (folder / "artifact.json").write_text(text)
        return store.put(key, folder)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    put(store, "abcd", "one")
    return store


def test_members_follow_the_name_of_the_output(store, tmp_path):
    publish(store.find("abcd"), tmp_path / "out" / "clip.json")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["clip.json", "clip.last.png", "clip.mkv", "clip/000001.png"]


def test_the_declared_file_comes_last(store, tmp_path, monkeypatch):
    placed = []
    monkeypatch.setattr(stores, "place", lambda source, target, linked: placed.append(target.name))
    publish(store.find("abcd"), tmp_path / "clip.json")
    assert placed[-1] == "clip.json"


def test_an_edit_of_a_result_changes_neither_the_store_nor_another_result(store, tmp_path):
    for run in ("one", "two"):
        publish(store.find("abcd"), tmp_path / run / "clip.json")
    for path in (tmp_path / "one").rglob("*.*"):
        if path.suffix != ".mkv":
            with open(path, "r+") as file:  # in place, as `ffmpeg -y` and `sed -i --in-place=` of some systems do
                file.write("two")
    assert (tmp_path / "two" / "clip.json").read_text() == "one"
    assert store.find("abcd")


def test_large_videos_are_on_the_disk_once_and_read_only(store, tmp_path):
    publish(store.find("abcd"), tmp_path / "clip.json")
    state = (tmp_path / "clip.mkv").stat()
    assert (state.st_nlink, state.st_mode & 0o222) == (2, 0)
    assert (tmp_path / "clip.json").stat().st_mode & 0o200  # Snakemake refuses a declared output that is read-only


def test_published_files_have_the_time_at_which_the_item_was_finished(store, tmp_path):
    entry = store.find("abcd")
    for path in entry.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    publish(entry, tmp_path / "clip.json")
    assert {path.stat().st_mtime for path in tmp_path.glob("clip*.*")} == {1e9}


@pytest.mark.parametrize("missing", ["link", "copy_file_range"])
def test_file_systems_without_links_or_shared_blocks_get_copies(store, tmp_path, monkeypatch, missing):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, missing, refuse)
    publish(store.find("abcd"), tmp_path / "clip.json")
    assert {path.read_text() for path in tmp_path.glob("clip*.*")} == {"one"}


def test_the_first_to_finish_a_key_wins_and_no_rest_is_left(store):
    assert put(store, "abcd", "two") == store.entry("abcd")
    assert (store.entry("abcd") / "artifact.json").read_text() == "one"
    assert list((store.root / "staging").iterdir()) == []


def flip_a_bit(chance, entry, other):
    path = chance.choice([path for path in entry.rglob("*") if path.is_file()])
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.chmod(0o644)
    path.write_bytes(content)


def cut_a_file(chance, entry, other):
    path = chance.choice([path for path in entry.rglob("*") if path.is_file()])
    os.truncate(path, chance.randrange(path.stat().st_size))


def remove_a_file(chance, entry, other):
    chance.choice([path for path in entry.rglob("*") if path.is_file()]).unlink()


def add_a_file(chance, entry, other):
    (entry / "artifact.gif").write_text("new")


def swap_files(chance, entry, other):
    path = chance.choice([path for path in entry.rglob("*") if path.is_file()])
    path.unlink()
    shutil.copy(other / path.relative_to(entry), path)


def swap_entries(chance, entry, other):
    shutil.rmtree(entry)
    shutil.copytree(other, entry)


def link_a_file(chance, entry, other):
    (entry / "artifact.json").unlink()
    (entry / "artifact.json").symlink_to(other / "artifact.json")


def put_a_file_in_its_place(chance, entry, other):
    shutil.rmtree(entry)
    entry.write_text("one")


def nest_the_seal(chance, entry, other):
    (entry / "seal.json").unlink()
    (entry / "seal.json").write_text("[" * 100_000)


def one_of(chance, entry):
    path = chance.choice([path for path in entry.rglob("*") if path.is_file()])
    path.unlink()
    return path


def put_a_fifo(chance, entry, other):
    os.mkfifo(one_of(chance, entry))


def put_a_device(chance, entry, other):
    one_of(chance, entry).symlink_to("/dev/zero")


def put_a_socket(chance, entry, other):
    with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(entry):  # the path of one is 107 characters at most
        end.bind(one_of(chance, entry).relative_to(entry).as_posix())


def put_a_seal_without_end(chance, entry, other):
    (entry / "seal.json").chmod(0o644)
    os.truncate(entry / "seal.json", 2**40)


DAMAGES = [
    flip_a_bit,
    cut_a_file,
    remove_a_file,
    add_a_file,
    swap_files,
    swap_entries,
    link_a_file,
    put_a_file_in_its_place,
    nest_the_seal,
    put_a_fifo,
    put_a_device,
    put_a_socket,
    put_a_seal_without_end,
]


def test_of_200_damaged_entries_none_is_used_and_each_is_named(store, capsys):
    chance = random.Random(0)
    keys = [f"{number:04x}" for number in range(200)]
    for key in keys:
        put(store, key, f"item {key}")
    for number, key in enumerate(keys):
        DAMAGES[number % len(DAMAGES)](chance, store.entry(key), store.entry("abcd"))
    assert [key for key in keys if store.find(key)] == []
    said = capsys.readouterr().err
    assert all(f"{store.entry(key)} is damaged" in said for key in keys)
    for key in keys:  # and each can be put again
        put(store, key, f"again {key}")
        assert (store.find(key) / "artifact.json").read_text() == f"again {key}"
    assert store.find("abcd")


def test_a_damaged_entry_that_cannot_be_removed_is_not_published(store, tmp_path, monkeypatch):
    (store.entry("abcd") / "artifact.json").chmod(0o644)
    (store.entry("abcd") / "artifact.json").write_text("bad")
    monkeypatch.setattr(Store, "_discard", lambda self, entry: None)
    with store.staging() as folder:
        (folder / "artifact.json").write_text("good")
        publish(store.put("abcd", folder), tmp_path / "clip.json")
    assert (tmp_path / "clip.json").read_text() == "good"


@pytest.mark.parametrize("name", ["clip.json", "clip.mkv"])
def test_a_fifo_in_the_place_of_an_output_is_replaced(store, tmp_path, name):
    os.mkfifo(tmp_path / name)
    publish(store.find("abcd"), tmp_path / "clip.json")
    assert (tmp_path / name).read_text() == "one"


@pytest.mark.parametrize("kind", ["a folder for a file", "a file for a folder"])
def test_what_no_file_can_take_the_place_of_fails_its_item_alone(store, tmp_path, kind):
    if kind == "a folder for a file":
        (tmp_path / "clip.mkv").mkdir()
    else:
        (tmp_path / "clip").write_text("mine")
    with pytest.raises(ItemError, match="clip.mkv is a folder: remove it|clip is a file, not a folder: remove it"):
        publish(store.find("abcd"), tmp_path / "clip.json")
    assert not (tmp_path / "clip.json").exists() and not (tmp_path / "clip.last.png").exists()
    publish(store.find("abcd"), tmp_path / "other.json")


def test_a_lock_that_is_not_given_back_is_named_and_not_waited_for_without_end(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stores, "FIRST_WORD", 0.05)
    monkeypatch.setattr(stores, "LONGEST_LOCK", 0.3)
    with stores.locked(tmp_path):
        publish(store.find("abcd"), tmp_path / "clip.json")
    (said,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert f"{tmp_path}, into which results are to be put, is locked by process {os.getpid()}" in said["reason"]
    assert (tmp_path / "clip.json").read_text() == "one"


def test_a_failed_item_leaves_no_entry(store):
    with pytest.raises(RuntimeError), store.staging() as folder:
        (folder / "artifact.json").write_text("half")
        raise RuntimeError
    assert list((store.root / "staging").iterdir()) == []


def test_what_killed_processes_left_is_swept_and_work_in_hand_is_not(store):
    for name, age in (("old", 15), ("new", 1)):
        folder = store.root / "staging" / name
        folder.mkdir()
        os.utime(folder, (time.time() - age * 86400,) * 2)
    store.sweep()
    assert [path.name for path in (store.root / "staging").iterdir()] == ["new"]


def test_an_entry_that_is_gone_is_not_published_as_nothing(store, tmp_path):
    entry = store.find("abcd")
    shutil.rmtree(entry)
    with pytest.raises(StoreRemoved, match="was removed while it was in use"):
        publish(entry, tmp_path / "clip.json")


def publishes(entry, output, start):
    start.wait()
    for _ in range(20):
        publish(entry, output)


def test_two_processes_that_publish_at_one_output_do_not_mix_their_files(store, tmp_path):
    put(store, "ef01", "two")
    processes = multiprocessing.get_context("fork")
    for _ in range(10):
        start, output = processes.Event(), tmp_path / "clip.json"
        running = [processes.Process(target=publishes, args=(store.entry(key), output, start)) for key in ("abcd", "ef01")]
        for process in running:
            process.start()
        start.set()
        for process in running:
            process.join()
        found = [path for path in (*tmp_path.glob("clip*.*"), *tmp_path.glob("clip/*"))]
        assert len(found) == 4 and len({path.read_text() for path in found}) == 1
