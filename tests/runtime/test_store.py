"""The store publishes whole items, shares their bytes, and keeps times in the order of the work."""

import os
import time

import pytest

from stages.runtime import store as stores
from stages.runtime.store import Store


def put(store: Store, key: str, text: str) -> None:
    with store.staging() as folder:
        (folder / "artifact").mkdir()
        (folder / "artifact" / "000001.png").write_text(text)
        (folder / "artifact.last.png").write_text(text)
        (folder / "artifact.json").write_text(text)
        store.put(key, folder)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    put(store, "abcd", "one")
    return store


def test_members_follow_the_name_of_the_output(store, tmp_path):
    store.link("abcd", tmp_path / "out" / "clip.json")
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["clip.json", "clip.last.png", "clip/000001.png"]
    assert os.stat(tmp_path / "out" / "clip.json").st_nlink == 2  # no second copy on the disk


def test_the_declared_file_comes_last(store, tmp_path, monkeypatch):
    placed = []
    monkeypatch.setattr(stores, "place", lambda source, target, copy: placed.append(target.name))
    store.link("abcd", tmp_path / "clip.json")
    assert placed[-1] == "clip.json"


def test_touching_one_runs_file_leaves_the_others_time(store, tmp_path):
    store.link("abcd", tmp_path / "one" / "clip.json")
    before = (tmp_path / "one" / "clip.json").stat().st_mtime_ns
    store.link("abcd", tmp_path / "two" / "clip.json")
    os.utime(tmp_path / "two" / "clip.json", ns=(before + 10**9, before + 10**9))
    assert (tmp_path / "one" / "clip.json").stat().st_mtime_ns == before
    assert (tmp_path / "two" / "clip.last.png").samefile(tmp_path / "one" / "clip.last.png")  # only that file is twice there


def test_across_file_systems_it_copies(store, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    store.link("abcd", tmp_path / "clip.json")
    assert (tmp_path / "clip.last.png").read_text() == "one"


def test_the_first_to_finish_a_key_wins_and_no_rest_is_left(store, tmp_path):
    put(store, "abcd", "two")
    assert (store.entry("abcd") / "artifact.json").read_text() == "one"
    assert list((store.root / "staging").iterdir()) == []


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
