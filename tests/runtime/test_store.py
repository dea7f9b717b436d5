"""The store publishes whole items, returns only undamaged ones, and is not changed by edits of published files."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import socket
import tempfile
import time

import pytest

from stages.runtime import store as stores
from stages.runtime.errors import ItemError
from stages.runtime.files import replacing
from stages.runtime.result_record import ResultRecord, read_record, write_record
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


def test_published_members_are_named_after_the_output(store, tmp_path):
    publish(store.find("abcd"), tmp_path / "out" / "clip.json")
    published = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert published == ["clip.json", "clip.last.png", "clip.mkv", "clip/000001.png"]


def test_publish_writes_the_declared_file_last(store, tmp_path, monkeypatch):
    placed = []
    monkeypatch.setattr(stores, "place", lambda source, target, linked: placed.append(target.name))
    publish(store.find("abcd"), tmp_path / "clip.json")
    assert placed[-1] == "clip.json"


def test_editing_a_published_file_changes_neither_the_store_nor_another_result(store, tmp_path):
    for run in ("one", "two"):
        publish(store.find("abcd"), tmp_path / run / "clip.json")
    for path in (tmp_path / "one").rglob("*.*"):
        if path.suffix != ".mkv":
            with open(path, "r+") as file:  # in place, as `ffmpeg -y` and `sed -i --in-place=` of some systems do
                file.write("two")
    assert (tmp_path / "two" / "clip.json").read_text() == "one"
    assert store.find("abcd")


def test_published_large_videos_are_read_only_links_to_the_store(store, tmp_path):
    publish(store.find("abcd"), tmp_path / "clip.json")
    state = (tmp_path / "clip.mkv").stat()
    assert (state.st_nlink, state.st_mode & 0o222) == (2, 0)
    assert (tmp_path / "clip.json").stat().st_mode & 0o200  # Snakemake refuses a declared output that is read-only


def test_published_files_keep_the_time_of_the_finished_item(store, tmp_path):
    entry = store.find("abcd")
    for path in entry.rglob("*.*"):
        os.utime(path, (1e9, 1e9))
    publish(entry, tmp_path / "clip.json")
    assert {path.stat().st_mtime for path in tmp_path.glob("clip*.*")} == {1e9}


@pytest.mark.parametrize("missing", ["link", "copy_file_range"])
def test_publish_copies_where_links_or_shared_blocks_are_missing(store, tmp_path, monkeypatch, missing):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, missing, refuse)
    publish(store.find("abcd"), tmp_path / "clip.json")
    assert {path.read_text() for path in tmp_path.glob("clip*.*")} == {"one"}


def test_the_first_put_of_a_store_key_wins_and_staging_is_left_empty(store):
    assert put(store, "abcd", "two") == store.entry("abcd")
    assert (store.entry("abcd") / "artifact.json").read_text() == "one"
    assert list((store.root / "staging").iterdir()) == []


def flip_a_bit(rng, entry, other):
    path = rng.choice([path for path in entry.rglob("*") if path.is_file()])
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.chmod(0o644)
    path.write_bytes(content)


def cut_a_file(rng, entry, other):
    path = rng.choice([path for path in entry.rglob("*") if path.is_file()])
    os.truncate(path, rng.randrange(path.stat().st_size))


def remove_a_file(rng, entry, other):
    rng.choice([path for path in entry.rglob("*") if path.is_file()]).unlink()


def add_a_file(rng, entry, other):
    (entry / "artifact.gif").write_text("new")


def swap_files(rng, entry, other):
    path = rng.choice([path for path in entry.rglob("*") if path.is_file()])
    path.unlink()
    shutil.copy(other / path.relative_to(entry), path)


def swap_entries(rng, entry, other):
    shutil.rmtree(entry)
    shutil.copytree(other, entry)


def link_a_file(rng, entry, other):
    (entry / "artifact.json").unlink()
    (entry / "artifact.json").symlink_to(other / "artifact.json")


def replace_entry_by_file(rng, entry, other):
    shutil.rmtree(entry)
    entry.write_text("one")


def write_a_nested_seal(rng, entry, other):
    (entry / "seal.json").unlink()
    (entry / "seal.json").write_text("[" * 100_000)


def remove_one(rng, entry):
    path = rng.choice([path for path in entry.rglob("*") if path.is_file()])
    path.unlink()
    return path


def put_a_fifo(rng, entry, other):
    os.mkfifo(remove_one(rng, entry))


def put_a_device(rng, entry, other):
    remove_one(rng, entry).symlink_to("/dev/zero")


def put_a_socket(rng, entry, other):
    with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(entry):  # the path of a socket has at most 107 characters
        end.bind(remove_one(rng, entry).relative_to(entry).as_posix())


def make_the_seal_huge(rng, entry, other):
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
    replace_entry_by_file,
    write_a_nested_seal,
    put_a_fifo,
    put_a_device,
    put_a_socket,
    make_the_seal_huge,
]


def test_200_damaged_store_entries_are_each_named_and_not_used(store, capsys):
    rng = random.Random(0)
    keys = [f"{number:04x}" for number in range(200)]
    for key in keys:
        put(store, key, f"item {key}")
    for number, key in enumerate(keys):
        DAMAGES[number % len(DAMAGES)](rng, store.entry(key), store.entry("abcd"))
    assert [key for key in keys if store.find(key)] == []
    stderr = capsys.readouterr().err
    assert all(f"{store.entry(key)} is damaged" in stderr for key in keys)
    for key in keys:  # each can be put again
        put(store, key, f"again {key}")
        assert (store.find(key) / "artifact.json").read_text() == f"again {key}"
    assert store.find("abcd")


def test_a_damaged_store_entry_that_cannot_be_removed_is_not_published(store, tmp_path, monkeypatch):
    (store.entry("abcd") / "artifact.json").chmod(0o644)
    (store.entry("abcd") / "artifact.json").write_text("bad")
    monkeypatch.setattr(Store, "discard", lambda self, entry: tmp_path / "nothing")
    with store.staging() as folder:
        (folder / "artifact.json").write_text("good")
        publish(store.put("abcd", folder), tmp_path / "clip.json")
    assert (tmp_path / "clip.json").read_text() == "good"


@pytest.mark.parametrize("name", ["clip.json", "clip.mkv"])
def test_publish_replaces_a_fifo_at_the_path_of_an_output(store, tmp_path, name):
    os.mkfifo(tmp_path / name)
    publish(store.find("abcd"), tmp_path / "clip.json")
    assert (tmp_path / name).read_text() == "one"


@pytest.mark.parametrize("kind", ["a folder for a file", "a file for a folder"])
def test_publish_names_a_folder_or_file_that_it_cannot_replace(store, tmp_path, kind):
    if kind == "a folder for a file":
        (tmp_path / "clip.mkv").mkdir()
    else:
        (tmp_path / "clip").write_text("mine")
    with pytest.raises(ItemError, match="clip.mkv is a folder: remove it|clip is a file, not a folder: remove it"):
        publish(store.find("abcd"), tmp_path / "clip.json")
    assert not (tmp_path / "clip.json").exists() and not (tmp_path / "clip.last.png").exists()
    publish(store.find("abcd"), tmp_path / "other.json")


def test_publish_names_a_lock_that_is_never_released_and_goes_on(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stores, "FIRST_MESSAGE", 0.05)
    monkeypatch.setattr(stores, "LONGEST_LOCK", 0.3)
    with stores.locked(tmp_path):
        publish(store.find("abcd"), tmp_path / "clip.json")
    (event,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert f"{tmp_path}, into which results are to be put, is locked by process {os.getpid()}" in event["reason"]
    assert (tmp_path / "clip.json").read_text() == "one"


def test_a_failed_item_leaves_nothing_in_staging(store):
    with pytest.raises(RuntimeError), store.staging() as folder:
        (folder / "artifact.json").write_text("half")
        raise RuntimeError
    assert list((store.root / "staging").iterdir()) == []


def test_sweep_removes_old_staging_folders_and_keeps_new_ones(store):
    for name, age in (("old", 15), ("new", 1)):
        folder = store.root / "staging" / name
        folder.mkdir()
        os.utime(folder, (time.time() - age * 86400,) * 2)
    store.sweep()
    assert [path.name for path in (store.root / "staging").iterdir()] == ["new"]


def test_publish_reports_a_removed_store_entry(store, tmp_path):
    entry = store.find("abcd")
    shutil.rmtree(entry)
    with pytest.raises(StoreRemoved, match="was removed while it was in use"):
        publish(entry, tmp_path / "clip.json")


def publish_repeatedly(entry, output, start):
    def record(published):
        write_record(output, ResultRecord.of(output, entry.name, [], [], published))

    start.wait()
    for _ in range(5):
        publish(entry, output, then=record)


def test_processes_publishing_to_one_output_mix_neither_files_nor_records(store, tmp_path):
    keys = {"one": "abcd", "two": "ef01", "three": "ef02", "four": "ef03"}
    for text, key in keys.items():
        put(store, key, text)
    processes = multiprocessing.get_context("fork")
    for _ in range(10):
        start, output = processes.Event(), tmp_path / "clip.json"
        running = [
            processes.Process(target=publish_repeatedly, args=(store.entry(key), output, start)) for key in keys.values()
        ]
        for process in running:
            process.start()
        start.set()
        for process in running:
            process.join()
        published = [path for path in (*tmp_path.glob("clip*.*"), *tmp_path.glob("clip/*"))]
        (text,) = {path.read_text() for path in published}
        record = read_record(output)
        assert len(published) == 4 and record.fingerprint == keys[text] and not record.changed(output)


def test_every_file_and_folder_is_on_the_disk_before_the_entry_exists(store, monkeypatch):
    synced = {}

    def note(descriptor):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.setdefault(name, store.entry("cdef").exists())

    monkeypatch.setattr(os, "fsync", note)
    put(store, "cdef", "one")
    files = {path.name for path in store.entry("cdef").rglob("*")}
    assert "000001.png" in files and "artifact" in files
    assert {name for name, late in synced.items() if not late} >= files
    assert {name for name, late in synced.items() if late} == {"cd"}  # the name of the entry itself


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_put_removes_the_state_of_the_finished_item(store, kind):
    state = store.partial("cdef")
    if kind == "folder":
        state.mkdir()
        state /= "000000.safetensors"
    state.write_text("state")
    put(store, "cdef", "one")
    assert list((store.root / "partial").iterdir()) == []


@pytest.mark.parametrize("read_only", [".", "staging", "partial"])
def test_store_fault_names_a_folder_that_this_user_cannot_write(store, monkeypatch, read_only):
    store.partial("abcd")
    assert store.fault() is None
    place = (store.root / read_only).resolve()
    access, opening = os.access, tempfile.TemporaryFile

    def refuse_in_place(dir, **options):
        if dir == place:
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return opening(dir=dir, **options)

    monkeypatch.setattr(os, "access", lambda path, mode: path != place and access(path, mode))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse_in_place)
    assert store.fault() == f"{place} may not be written by this user"


def test_published_files_have_the_permissions_of_the_umask(store, tmp_path):
    for mask, mode in ((0o002, 0o664), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            publish(store.find("abcd"), tmp_path / f"{mask}" / "clip.json")
        finally:
            os.umask(before)
        copies = [path for path in (tmp_path / f"{mask}").rglob("*.*") if path.suffix != ".mkv"]
        assert {path.stat().st_mode & 0o777 for path in copies} == {mode}


def test_replacing_reports_the_target_and_not_the_temporary_file(tmp_path):
    with pytest.raises(IsADirectoryError) as caught, replacing(tmp_path) as temporary:
        temporary.write_text("one")
    assert caught.value.filename == str(tmp_path)
