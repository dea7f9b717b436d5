"""Artifacts say what they are, and a damaged one is told before any weights are loaded."""

import json

import pytest
import torch
from safetensors import safe_open

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


def test_provenance_travels_and_leaves_the_digest_alone(latents):
    before = artifacts.read(latents, ("latents",)).digest
    artifacts.add_provenance(latents, [{"key": "k", "seconds": 3}])
    after = artifacts.read(latents, ("latents",))
    assert after.digest == before
    assert after.provenance == [{"key": "k", "seconds": 3}]


def test_one_changed_number_changes_the_digest(tmp_path, latents):
    other = tmp_path / "other.safetensors"
    tensor = torch.arange(48.0).reshape(1, 4, 3, 2, 2)
    tensor[0, 0, 0, 0, 0] = 1e-6
    artifacts.write_tensors(other, "latents", FIELDS, {"latents": tensor})
    assert artifacts.read(other, ("latents",)).digest != artifacts.read(latents, ("latents",)).digest


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_torn_file_is_refused(latents, kept):
    latents.write_bytes(latents.read_bytes()[:kept])
    with pytest.raises(ItemError, match="is not a whole Kinemake file"):
        artifacts.read(latents, ("latents",))


def test_another_kind_is_refused_by_name(latents):
    with pytest.raises(ItemError, match="holds 'latents': a file of kind encoded is needed here"):
        artifacts.read(latents, ("encoded",))


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [(torch.zeros(1, 4, 3, 2), "has shape"), (torch.zeros(1, 4, 3, 2, 2).double(), "is F64"), (None, "lacks the tensor")],
)
def test_the_writer_is_held_to_shapes_and_dtypes(tmp_path, tensor, complaint):
    tensors = {} if tensor is None else {"latents": tensor}
    with pytest.raises(ItemError, match=complaint):
        artifacts.write_tensors(tmp_path / "x.safetensors", "latents", FIELDS, tensors)


def test_sizes_of_one_letter_must_agree(tmp_path):
    tensors = {"prompt_embeds": torch.zeros(1, 8, 4), "negative_prompt_embeds": torch.zeros(1, 9, 4)}
    with pytest.raises(ItemError, match="negative_prompt_embeds .* has shape"):
        artifacts.write_tensors(tmp_path / "x.safetensors", "encoded", fields("encoded"), tensors)


def test_a_missing_or_cut_member_is_told(tmp_path):
    index = tmp_path / "caption.json"
    (tmp_path / "caption.txt").write_text("text")
    artifacts.write_index(index, "caption", fields("caption"), [".txt"])
    (tmp_path / "caption.txt").write_text("tex")
    with pytest.raises(ItemError, match="caption.txt, a member of .* is missing or not whole"):
        artifacts.read(index, ("caption",))


def test_another_version_is_refused(tmp_path):
    index = tmp_path / "caption.json"
    artifacts.write_index(index, "caption", fields("caption"))
    index.write_text(json.dumps({**json.loads(index.read_text()), "kinemake.version": 99}))
    with pytest.raises(ItemError, match="version 99 of kind caption, this program knows 1"):
        artifacts.read(index, ("caption",))


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_a_failure_stands_where_the_artifact_would(tmp_path, name):
    failure = Failure("encode", "beach", "it is broken", "mend it")
    artifacts.write_failure(tmp_path / name, failure)
    assert artifacts.read(tmp_path / name, ("latents",)).failure == failure
    assert artifacts.read_failure(tmp_path / name) == failure


def test_a_user_s_own_json_is_not_taken_for_an_artifact(tmp_path):
    (tmp_path / "a.json").write_text('{"hello": 1}')
    assert artifacts.read_failure(tmp_path / "a.json") is None
    with pytest.raises(ItemError, match="is not a whole Kinemake file"):
        artifacts.read(tmp_path / "a.json", ("clip",))
