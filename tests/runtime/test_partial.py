"""The state of an unfinished item is taken up by that item alone, and only as it was kept."""

import os
import random
import shutil

import pytest
import torch

from stages.models.wan import checkpoint
from stages.models.wan.sampler import State

CPU = torch.device("cpu")


@pytest.fixture
def state(tmp_path):
    numbers = torch.Generator().manual_seed(0)
    x, *outputs = torch.randn(3, 1, 4, 2, 2, 2, generator=numbers)
    path = tmp_path / "abcd.safetensors"
    checkpoint.save(path, State(step=3, x=x, sample=x + 1, outputs=tuple(outputs), order=2, warm=2))
    return path


def test_a_state_comes_back_as_it_was(state):
    found = checkpoint.load(state, CPU)
    assert (found.step, found.order, len(found.outputs)) == (3, 2, 2)
    assert torch.equal(found.sample, found.x + 1)


def test_the_state_of_another_item_is_named_and_not_taken(state, capsys):
    other = state.with_name("ef01.safetensors")
    shutil.copy(state, other)
    assert checkpoint.load(other, CPU) is None
    assert f"{other} is damaged, or the state of another item" in capsys.readouterr().err
    assert not other.exists()


def test_a_state_with_one_flipped_bit_is_not_taken(state):
    content, chance = state.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        state.write_bytes(damaged)
        assert checkpoint.load(state, CPU) is None
        assert not state.exists()


def test_a_fifo_in_the_place_of_a_state_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "abcd.safetensors")
    assert checkpoint.load(tmp_path / "abcd.safetensors", CPU) is None
    assert not (tmp_path / "abcd.safetensors").exists()


def test_a_link_under_a_name_that_can_be_guessed_is_not_followed(tmp_path):
    """Whoever may write into a shared store may plant one there."""
    precious, path = tmp_path / "precious", tmp_path / "abcd.safetensors"
    precious.write_text("precious")
    for name in (f"abcd.safetensors.{os.getpid()}", f"{os.getpid()}.abcd.safetensors", "abcd.safetensors"):
        (tmp_path / name).symlink_to(precious)
    checkpoint.save(path, State(step=3, x=torch.zeros(1, 4, 2, 2, 2)))
    assert precious.read_text() == "precious" and checkpoint.load(path, CPU).step == 3
