"""Models that a config declares: one sentence for whatever it has wrong."""

import hashlib
import os
import re

import pytest

from stages.runtime.errors import UsageError
from stages.runtime.model import cached_file_digest, declared_models


def declared(folder, text):
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return declared_models(path)


def test_sizes_have_one_spelling_and_paths_start_from_the_home_folder(tmp_path):
    model = declared(tmp_path, "models: {a: {family: wan, path: ~/weights, sizes: [64x64, 128 X 64]}}")["a"]
    assert (model.path, model.sizes) == (os.path.expanduser("~/weights"), ("64*64", "128*64"))


@pytest.mark.parametrize("text", ["", "runs: {}", "models:", "models: {}"])
def test_a_config_may_declare_none(tmp_path, text):
    assert declared(tmp_path, text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"models: {a: {family: caf\xe9}}", "is not UTF-8 text"),
        ("models: &a {a: *a}", "contains itself"),
        ("models: " + "[" * 5000, "nested too deep"),
        ("models: {a: 1, a: 2}", "the key 'a' stands twice"),
        ("- 1", r"models of .* is \[1\]: it must be a table"),
        ("models: 7", "models of .* is 7: it must be a table"),
        ("models: {a: 7}", "model a is 7: it must be a table with family and path"),
        ("models: {a: {family: wan, pth: x}}", "model a has the unknown key 'pth': known are family"),
        ("models: {a: {path: x}}", "model a has no family"),
        ("models: {a: {family: wan, path: 7}}", 'path of model a is 7: it must be text: write it in quotes, such as "7"'),
        ("models: {a: {family: wan, path: 2026-01-01}}", 'write it in quotes, such as "2026-01-01"'),
        ("models: {a: {family: wan, sizes: 64*64}}", "sizes of model a is '64.64'"),
        ("models: {a: {family: wan, sizes: [64]}}", "size 64 is not WIDTH"),
        ("models: {a: {family: wan, options: [1]}}", r"options of model a is \[1\]"),
        ("models: {2026-01-01: {family: [wan]}}", r"family of model 2026-01-01 is \['wan'\]"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_declaration_is_one_sentence(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        declared(tmp_path, text)
    assert "\n" not in str(caught.value) and not re.search("<class|object at", str(caught.value))


def test_a_file_that_was_written_in_place_and_given_its_time_back_has_another_digest(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_text("old")
    before, digest = path.stat(), cached_file_digest(path)
    path.write_text("new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_file_digest(path) != digest == hashlib.sha256(b"old").hexdigest()


def test_a_note_of_the_cache_that_is_none_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMAKE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    digest = cached_file_digest(path)
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    for text in ("7", "[]", "[" * 60_000, None):
        note.unlink()
        os.mkfifo(note) if text is None else note.write_text(text)
        assert cached_file_digest(path) == digest
