"""Artifacts state their kind, and a damaged one is reported before any weights are loaded."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stages.runtime import artifacts
from stages.runtime.artifacts import Failure
from stages.runtime.errors import ItemError
from tests.records import fields

FIELDS = fields("latents")


@pytest.fixture
def latents(tmp_path):
    path = tmp_path / "latents.safetensors"
    artifacts.write_tensors(path, "latents", FIELDS, {"latents": torch.arange(48.0).reshape(1, 4, 3, 2, 2)})
    return path


def test_latents_are_readable_by_the_safetensors_library(latents):
    artifacts.add_provenance(latents, [{"key": "k", "note": "grün" * 1000}])
    with safe_open(latents, "pt") as file:
        assert file.metadata()["kinemake.kind"] == "latents"
        assert torch.equal(file.get_tensor("latents"), torch.arange(48.0).reshape(1, 4, 3, 2, 2))


def test_provenance_is_kept_and_does_not_change_the_digest(latents):
    before = artifacts.read(latents, ("latents",)).digest
    artifacts.add_provenance(latents, [{"key": "k", "seconds": 3}])
    after = artifacts.read(latents, ("latents",))
    assert after.digest == before
    assert after.provenance == [{"key": "k", "seconds": 3}]


RECORDS = [{"key": str(n), "program": {"kinemake": "1", "libraries": {"torch": str(n // 7)}}} for n in range(12)]


def write_caption(folder):
    path = folder / "caption.json"
    artifacts.write_index(path, "caption", fields("caption"))
    return path


@pytest.mark.parametrize("kind", ["caption", "latents"])
def test_a_file_holds_each_program_once_and_is_read_with_the_program_of_each_record(tmp_path, latents, kind):
    path = latents if kind == "latents" else write_caption(tmp_path)
    artifacts.add_provenance(path, RECORDS)
    assert artifacts.read(path, (kind,)).provenance == RECORDS
    text = path.read_bytes()
    assert text.count(b"libraries") == 2
    artifacts.add_provenance(path, artifacts.read(path, (kind,)).provenance[:1])
    assert path.read_bytes().count(b"libraries") == 1 and artifacts.read(path, (kind,)).provenance == RECORDS[:1]


def test_a_file_of_an_earlier_version_is_read_with_the_programs_in_its_records(tmp_path, latents):
    path = write_caption(tmp_path)
    head = json.loads(path.read_text())
    head.pop("programs")
    path.write_text(json.dumps(head | {"provenance": RECORDS}))
    assert artifacts.read(path, ("caption",)).provenance == RECORDS
    with safe_open(latents, "pt") as file:
        metadata, tensor = dict(file.metadata()), file.get_tensor("latents")
    metadata.pop("programs")
    save_file({"latents": tensor}, latents, metadata | {"provenance": json.dumps(RECORDS)})
    assert artifacts.read(latents, ("latents",)).provenance == RECORDS


def test_one_changed_value_of_a_tensor_changes_the_digest(tmp_path, latents):
    other = tmp_path / "other.safetensors"
    tensor = torch.arange(48.0).reshape(1, 4, 3, 2, 2)
    tensor[0, 0, 0, 0, 0] = 1e-6
    artifacts.write_tensors(other, "latents", FIELDS, {"latents": tensor})
    assert artifacts.read(other, ("latents",)).digest != artifacts.read(latents, ("latents",)).digest


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_artifact_is_refused(latents, kept):
    latents.write_bytes(latents.read_bytes()[:kept])
    with pytest.raises(ItemError, match="is not a whole Kinemake file"):
        artifacts.read(latents, ("latents",))


def test_an_artifact_of_another_kind_is_refused_by_name(latents):
    with pytest.raises(ItemError, match="holds 'latents': a file of kind encoded is needed here"):
        artifacts.read(latents, ("encoded",))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [(torch.zeros(1, 4, 3, 2), "has shape"), (torch.zeros(1, 4, 3, 2, 2).double(), "is F64"), (None, "lacks the tensor")],
)
def test_write_tensors_checks_shapes_and_dtypes(tmp_path, tensor, message):
    tensors = {} if tensor is None else {"latents": tensor}
    with pytest.raises(ItemError, match=message):
        artifacts.write_tensors(tmp_path / "x.safetensors", "latents", FIELDS, tensors)


def test_tensor_dimensions_of_one_name_must_agree(tmp_path):
    tensors = {"prompt_embeds": torch.zeros(1, 8, 4), "negative_prompt_embeds": torch.zeros(1, 9, 4)}
    with pytest.raises(ItemError, match="negative_prompt_embeds .* has shape"):
        artifacts.write_tensors(tmp_path / "x.safetensors", "encoded", fields("encoded"), tensors)


def test_a_missing_or_truncated_member_is_reported(tmp_path):
    index = tmp_path / "caption.json"
    (tmp_path / "caption.txt").write_text("text")
    artifacts.write_index(index, "caption", fields("caption"), [".txt"])
    (tmp_path / "caption.txt").write_text("tex")
    with pytest.raises(ItemError, match="caption.txt, a member of .* is missing or not whole"):
        artifacts.read(index, ("caption",))


def test_an_artifact_of_another_version_is_refused(tmp_path):
    index = tmp_path / "caption.json"
    artifacts.write_index(index, "caption", fields("caption"))
    index.write_text(json.dumps({**json.loads(index.read_text()), "kinemake.version": 99}))
    with pytest.raises(ItemError, match="version 99 of kind caption, this program knows 1"):
        artifacts.read(index, ("caption",))


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_a_failure_is_written_at_the_path_of_the_artifact(tmp_path, name):
    failure = Failure("encode", "beach", "it is broken", "mend it")
    artifacts.write_failure(tmp_path / name, failure)
    assert artifacts.read(tmp_path / name, ("latents",)).failure == failure
    assert artifacts.read_failure(tmp_path / name) == failure


def test_a_json_file_of_the_user_is_not_read_as_an_artifact(tmp_path):
    (tmp_path / "a.json").write_text('{"hello": 1}')
    assert artifacts.read_failure(tmp_path / "a.json") is None
    with pytest.raises(ItemError, match="is not a whole Kinemake file"):
        artifacts.read(tmp_path / "a.json", ("clip",))
