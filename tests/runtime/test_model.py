"""Models that a config declares: each mistake is reported in one sentence."""

import errno
import hashlib
import os
import pwd
import re
from pathlib import Path

import pytest

from stages.runtime import model as models
from stages.runtime.errors import JobError, UsageError
from stages.runtime.model import (
    Model,
    cache_folder,
    cached_file_digest,
    declared_models,
    seconds_until_settled,
    weights_digests,
)


def read_models(folder, text):
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return declared_models(path)


def test_declared_sizes_have_one_spelling_and_paths_may_start_with_a_tilde(tmp_path):
    model = read_models(tmp_path, "models: {a: {family: wan, path: ~/weights, sizes: [64x64, 128 X 64]}}")["a"]
    assert (model.path, model.sizes) == (os.path.expanduser("~/weights"), ("64*64", "128*64"))


def test_a_folder_without_a_config_has_the_models_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    declared = declared_models(None)
    assert Path(declared["shapes-wan-5b"].path, "model_index.json").is_file()
    assert declared["wan2.2-ti2v-5b"].hub and declared["longlive-1.3b"].convert
    Path("config.yaml").write_text("models: {mine: {family: wan, path: here}}")
    assert [model.path for model in declared_models(None).values()] == ["here"]


@pytest.mark.parametrize("text", ["", "runs: {}", "models:", "models: {}"])
def test_a_config_may_declare_no_models(tmp_path, text):
    assert read_models(tmp_path, text) == {}


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
def test_an_invalid_model_declaration_is_one_sentence(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_models(tmp_path, text)
    assert "\n" not in str(caught.value) and not re.search("<class|object at", str(caught.value))


def test_cached_digest_notices_a_change_that_keeps_the_file_time(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_text("old")
    before, digest = path.stat(), cached_file_digest(path)
    path.write_text("new")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_file_digest(path) != digest == hashlib.sha256(b"old").hexdigest()


def test_cached_digest_notices_a_write_right_after_another(tmp_path):
    """The kernel gives both writes one time."""
    path = tmp_path / "source.mp4"
    for number in range(20):
        path.write_text(f"{number:02d} before")
        cached_file_digest(path)
        path.write_text(f"{number:02d} behind")
        assert cached_file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_settles_after_the_clock_of_its_file_system_has_moved():
    now = 1_800_000_000_500_000_000
    assert seconds_until_settled(now - 10**9, now) == 0
    assert seconds_until_settled(now - 1, now) == pytest.approx(0.02)
    assert seconds_until_settled(now + 60 * 10**9 + 1, now) == pytest.approx(0.02)  # a server whose clock is ahead
    assert seconds_until_settled(now - 5 * 10**8, now) == pytest.approx(0.52)  # a file system of whole seconds


@pytest.fixture
def cached_file(tmp_path):
    """A function that puts a file into a folder like the hub's cache, under a name, and returns its path in the snapshot."""

    def put(content, name):
        blob, link = tmp_path / "blobs" / name, tmp_path / "snapshots/abc/model.safetensors"
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
        return link

    return put


def test_a_file_that_the_hub_names_by_its_digest_is_read_only_to_verify_it(cached_file, monkeypatch):
    digest = hashlib.sha256(b"weights").hexdigest()
    path = cached_file(b"weights", digest)
    assert weights_digests([path], verify=True) == [digest]
    path.resolve().write_bytes(b"changed")
    with pytest.raises(JobError, match=f"{path} has not the content that it was published with: remove .*{digest}"):
        weights_digests([path], verify=True)
    monkeypatch.setattr(models, "file_digest", refuse)
    assert weights_digests([path]) == [digest]


@pytest.mark.parametrize("name", ["0" * 40, "weights", "G" * 64], ids=["git's digest", "word", "no digest"])
def test_a_file_with_another_name_is_read_for_its_digest(name, cached_file):
    assert weights_digests([cached_file(b"weights", name)]) == [hashlib.sha256(b"weights").hexdigest()]


def test_digests_of_many_files_are_in_the_order_of_the_files(tmp_path):
    paths = [tmp_path / f"{number}.bin" for number in range(40)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10_000 * (40 - number))
    assert weights_digests(paths) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_a_damaged_cached_digest_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMAKE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    digest = cached_file_digest(path)
    (cached,) = (tmp_path / "cache" / "digests").iterdir()
    for text in ("7", "[]", "[" * 60_000, None):
        cached.unlink()
        os.mkfifo(cached) if text is None else cached.write_text(text)
        assert cached_file_digest(path) == digest


def test_an_unreadable_folder_or_file_of_a_model_is_named(tmp_path, monkeypatch):
    (tmp_path / "tone.txt").write_text("100")
    model = Model(name="grey", family="toy", path=str(tmp_path))
    monkeypatch.setattr(models, "cached_file_digest", refuse)
    with pytest.raises(JobError, match=f"{tmp_path}/tone.txt cannot be read .Permission denied.: make it readable"):
        model.digest(["tone.txt"])
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    with pytest.raises(JobError, match=f"{tmp_path} of model grey may not be read by this user: make it readable"):
        model.digest(["tone.txt"])


def refuse(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_cache_folder_without_a_home_names_the_variable_to_set(monkeypatch):
    for name in ("KINEMAKE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises(JobError, match="no home folder: set HOME or XDG_CACHE_HOME"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/kinemake")
