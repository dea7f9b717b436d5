"""The saved state of an unfinished item is loaded by that item only, and only undamaged."""

import os
import random
import shutil

import pytest
import torch

from stages.families.wan import checkpoint
from stages.families.wan.sampler import State

CPU = torch.device("cpu")


@pytest.fixture
def state(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, *outputs = torch.randn(3, 1, 4, 2, 2, 2, generator=generator)
    path = tmp_path / "abcd.safetensors"
    checkpoint.save(path, State(3, x, model_outputs=tuple(outputs), last_sample=x + 1, this_order=2, lower_order_nums=2))
    return path


def test_a_saved_state_loads_unchanged(state):
    loaded = checkpoint.load(state, CPU)
    assert (loaded.step, loaded.this_order, len(loaded.model_outputs)) == (3, 2, 2)
    assert torch.equal(loaded.last_sample, loaded.x + 1)


def test_the_state_of_another_item_is_reported_and_not_loaded(state, capsys):
    other = state.with_name("ef01.safetensors")
    shutil.copy(state, other)
    assert checkpoint.load(other, CPU) is None
    assert f"{other} is damaged, or the state of another item" in capsys.readouterr().err
    assert not other.exists()


def test_a_state_with_one_flipped_bit_is_not_loaded(state):
    content, rng = state.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        state.write_bytes(damaged)
        assert checkpoint.load(state, CPU) is None
        assert not state.exists()


def test_a_fifo_at_the_path_of_a_state_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "abcd.safetensors")
    assert checkpoint.load(tmp_path / "abcd.safetensors", CPU) is None
    assert not (tmp_path / "abcd.safetensors").exists()


def test_saving_a_state_follows_no_planted_link(tmp_path):
    """Anyone who may write to a shared store may plant one there."""
    precious, path = tmp_path / "precious", tmp_path / "abcd.safetensors"
    precious.write_text("precious")
    for name in (f"abcd.safetensors.{os.getpid()}", f"{os.getpid()}.abcd.safetensors", "abcd.safetensors"):
        (tmp_path / name).symlink_to(precious)
    checkpoint.save(path, State(step=3, x=torch.zeros(1, 4, 2, 2, 2)))
    assert precious.read_text() == "precious" and checkpoint.load(path, CPU).step == 3
