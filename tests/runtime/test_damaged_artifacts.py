"""Damaged artifacts: each is read as it is, or refused in one sentence."""

import json
import os
import random
import struct

import pytest
import torch
from click.testing import CliRunner

from stages import concat
from stages.runtime import artifacts
from stages.runtime.artifacts import Failure
from stages.runtime.errors import ItemError
from stages.runtime.kinds import KINDS
from tests.records import fields

STRANGE = [None, True, -1, 0.5, 10**30, "", "text", [], {}, [[]], {"a": 1}, ["text"], float("nan"), "\ud83d"]
PROVENANCE = [{"key": "k", "stage": "generate", "program": {"kinemake": "1"}}]


@pytest.fixture
def latents(tmp_path):
    path = tmp_path / "latents.safetensors"
    artifacts.write_tensors(path, "latents", fields("latents"), {"latents": torch.arange(48.0).reshape(1, 4, 3, 2, 2)})
    artifacts.add_provenance(path, PROVENANCE)
    return path


@pytest.fixture
def frames(tmp_path):
    path = tmp_path / "frames.json"
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "000000.png").write_bytes(b"png")
    listed = [{"index": 0, "time": 0.0, "suffix": "/000000.png"}]
    artifacts.write_index(path, "frames", fields("frames", frames=listed), ["/000000.png"], PROVENANCE)
    return path


def read_artifact(path):
    """Read an artifact as the item loop does. Returns it, or the error message if it is refused."""
    try:
        artifact = artifacts.read(path, KINDS)
        assert artifact.failure is None or str(artifact.failure)
        assert len(artifact.digest) == 64
        assert all(isinstance(record["key"], str) for record in artifact.provenance)
        if path.suffix == ".safetensors" and not artifact.failure:
            artifact.tensors()
    except ItemError as error:
        assert "\n" not in str(error)
        return str(error)
    return artifact


def variants(value, place=()):
    """Copies of a value with one part replaced by something strange, or removed: pairs (path of the part, copy)."""
    for strange in STRANGE:
        yield place, strange
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            for where, changed in variants(value[key], (*place, key)):
                whole = value.copy()
                whole[key] = changed
                yield where, whole
            whole = value.copy()
            del whole[key]
            yield (*place, key), whole


def write_header(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def split_header(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def test_an_index_with_any_value_changed_is_read_or_refused(frames):
    head = json.loads(frames.read_text())
    accepted = set()
    for place, changed in variants(head):
        frames.write_text(json.dumps(changed))
        if not isinstance(read_artifact(frames), str):
            accepted.add(".".join(map(str, place)))
    free = ("kinemake.version", "fields.select", "fields.source", "provenance", "programs", "fields.frames", "members")
    assert all(place.startswith(free) for place in accepted), accepted


def test_a_header_with_any_value_changed_is_read_or_refused(latents):
    header, data = split_header(latents)
    texts = {"fields": fields("latents"), "provenance": PROVENANCE}
    accepted = set()
    for place, changed in variants({**header, "__metadata__": {**header["__metadata__"], **texts}}):
        try:
            metadata = changed["__metadata__"]
            parts = {name: json.dumps(metadata[name]) for name in texts}
            changed = {**changed, "__metadata__": {**metadata, **parts}}
        except (TypeError, KeyError):
            pass  # as it is
        write_header(latents, changed, data)
        if not isinstance(read_artifact(latents), str):
            accepted.add(".".join(map(str, place)))
    texts = ("model", "family", "variant", "weights", "prompt", "raw", "seed")
    free = (
        *(f"__metadata__.fields.{name}" for name in texts),
        "__metadata__.provenance",
        "__metadata__.programs",
        "__metadata__.format",
    )
    assert all(place.startswith(free) for place in accepted), accepted


def test_an_artifact_with_flipped_or_missing_bytes_is_read_or_refused(latents, frames):
    rng = random.Random(0)
    for path in (latents, frames):
        content = path.read_bytes()
        for number in range(200):
            damaged = bytearray(content)
            for _ in range(1 + number % 3):
                damaged[rng.randrange(min(len(damaged), 900))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged[: rng.randrange(len(damaged))] if number % 4 == 0 else damaged)
            read_artifact(path)


@pytest.mark.parametrize("depth", [2000, 200_000])
@pytest.mark.parametrize("key", ["fields", "provenance", "members"])
def test_a_deeply_nested_value_of_an_artifact_is_refused(frames, latents, key, depth):
    deep = "[" * depth + "]" * depth
    head = json.loads(frames.read_text())
    frames.write_text(json.dumps({**head, key: "DEEP"}).replace('"DEEP"', deep))
    assert "nested too deep" in read_artifact(frames)
    header, data = split_header(latents)
    header["__metadata__"][key] = deep
    write_header(latents, header, data)
    assert key == "members" or "is not a whole Kinemake file" in read_artifact(latents)


def test_a_deeply_nested_header_is_refused(latents):
    text = b'{"latents": ' + b"[" * 100_000
    latents.write_bytes(struct.pack("<Q", len(text)) + text)
    assert "nested too deep" in read_artifact(latents)


@pytest.mark.parametrize("changed", [{"reason": 1}, {"stage": None}, {"more": "text"}, {"item": ["a"]}])
@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_failure_with_invalid_fields_is_refused(tmp_path, suffix, changed):
    path = tmp_path / f"a{suffix}"
    artifacts.write_failure(path, Failure("encode", "a", "it is broken"))
    if suffix == ".json":
        head = json.loads(path.read_text())
        path.write_text(json.dumps({**head, "fields": {**head["fields"], **changed}}))
    else:
        header, data = split_header(path)
        header["__metadata__"]["fields"] = json.dumps({"stage": "encode", "item": "a", "reason": "b", **changed})
        write_header(path, header, data)
    assert "is not a whole Kinemake file" in read_artifact(path)
    assert artifacts.read_failure(path) is None


@pytest.mark.parametrize("suffix", ["/../../etc.png", "/a/b.png", ".png/../x.png", "../x.png", "/x.png\n"])
def test_a_member_outside_the_folder_of_its_index_is_refused(frames, suffix):
    head = json.loads(frames.read_text())
    (facts,) = head["members"].values()
    frames.write_text(json.dumps({**head, "members": {suffix: facts}}))
    assert "is not a whole Kinemake file" in read_artifact(frames)


def test_a_changed_member_is_reported(frames):
    (frames.parent / "frames" / "000000.png").write_bytes(b"gnp")
    assert "000000.png, a member of" in read_artifact(frames) and "was changed after it was written" in read_artifact(frames)


def replace_with(path, kind):
    path.unlink(missing_ok=True)
    if kind == "a fifo":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to({"a device": "/dev/zero", "a dangling link": "nowhere"}[kind])


@pytest.mark.parametrize("kind", ["a fifo", "a folder", "a device", "a dangling link"])
def test_an_artifact_that_is_no_regular_file_is_not_read(latents, frames, tmp_path, kind):
    (tmp_path / "film.mp4").write_bytes(b"mp4")
    artifacts.write_index(tmp_path / "film.json", "film", fields("film"), [".mp4"])
    for place, refused in {
        latents: latents,
        tmp_path / "frames" / "000000.png": frames,
        tmp_path / "film.json": tmp_path / "film.mp4",
        frames: frames,
    }.items():
        replace_with(place, kind)
        assert isinstance(read_artifact(refused), str)
        assert artifacts.read_failure(place) is None


def test_a_huge_index_is_not_read(frames):
    os.truncate(frames, 2**40)
    assert "it has more than" in read_artifact(frames)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_write_failure_replaces_a_link_and_a_fifo(tmp_path, suffix):
    """Anyone who may write to the folder may plant one, under the output's name or any name that can be guessed."""
    precious, output = tmp_path / "precious", tmp_path / f"a{suffix}"
    precious.write_text("precious")
    for name in (f".a{suffix}.failed", f"a{suffix}.tmp", f".a{suffix}.{os.getpid()}", f"a{suffix}"):
        (tmp_path / name).symlink_to(precious)
    artifacts.write_failure(output, Failure("encode", "a", "it is broken"))
    assert precious.read_text() == "precious" and artifacts.read_failure(output).reason == "it is broken"
    replace_with(output, "a fifo")
    artifacts.write_failure(output, Failure("encode", "a", "it is broken"))
    assert artifacts.read_failure(output).reason == "it is broken"


def test_an_index_that_claims_a_tensor_kind_is_refused(latents, frames):
    head = json.loads(frames.read_text())
    frames.write_text(json.dumps({**head, "kinemake.kind": "latents", "fields": fields("latents"), "members": {}}))
    assert "holds 'latents'" in read_artifact(frames)


@pytest.mark.parametrize("place", ["kinemake.version", "fields.width", "fields.num_frames", "members", "provenance"])
def test_a_stage_reports_a_damaged_artifact_in_one_sentence(tmp_path, place):
    path = tmp_path / "clip.json"
    (tmp_path / "clip.mp4").write_bytes(b"mp4")
    artifacts.write_index(path, "clip", fields("clip"), [".mp4"])
    head = json.loads(path.read_text())
    outer, _, inner = place.partition(".") if place.startswith("fields") else (place, "", "")
    head = {**head, outer: {**head[outer], inner: "text"} if inner else "text"}
    path.write_text(json.dumps(head))
    result = CliRunner().invoke(concat.main, [str(path), "--output", str(tmp_path / "film.mp4")])
    (sentence,) = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert result.exit_code == 1 and sentence.startswith(f"error: {path} is not a whole Kinemake file")
