"""A rank: a further process of a job, which answers calls and ends with its parent."""

import gc
import os
from pathlib import Path

import pytest
import torch

from stages.runtime import device
from stages.runtime.errors import ItemError, JobError
from stages.runtime.ranks import Rank


class Served:
    """What the rank of these tests does, in its own process."""

    def __init__(self, word, device):
        self.word, self.device = word, device

    def about_itself(self):
        return os.getpid(), self.word, self.device, torch.get_num_threads(), os.environ["CUDA_VISIBLE_DEVICES"]

    def twice(self, tensor):
        return 2 * tensor

    def fail(self, error):
        raise error

    def leave(self):
        os._exit(3)


def served(*arguments):
    return Rank(1, "cpu", "tests.runtime.test_ranks:Served", *arguments)


@pytest.fixture(scope="module")
def rank():
    return served("hello")


def test_a_rank_has_the_arguments_the_threads_and_no_gpu_where_its_parent_has_none(rank):
    pid, *others = rank.begin("about_itself")()
    assert pid != os.getpid() and others == ["hello", "cpu", torch.get_num_threads(), ""]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_come_back_as_they_are(rank, dtype):
    tensor = torch.randn(2, 3, 5).to(dtype).transpose(0, 2)
    result = rank.begin("twice", tensor)()
    assert result.dtype == dtype and torch.equal(result, 2 * tensor)


def test_a_result_is_that_of_its_call_after_a_call_that_was_given_up(rank):
    rank.begin("twice", torch.ones(1))
    assert rank.begin("twice", torch.full((1,), 4.0))().item() == 8


def test_errors_of_items_and_lack_of_memory_are_raised_as_they_are(rank):
    with pytest.raises(ItemError, match="^a.safetensors is torn: give another$") as raised:
        rank.begin("fail", ItemError("a.safetensors is torn", "give another"))()
    assert (raised.value.reason, raised.value.remedy) == ("a.safetensors is torn", "give another")
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        rank.begin("fail", torch.OutOfMemoryError("no room"))()


def test_any_other_error_ends_the_job_in_one_sentence(rank):
    with pytest.raises(JobError, match=r"^rank 1 failed \(unexpected KeyError: 'odd'\): mend that and run again"):
        rank.begin("fail", KeyError("odd"))()
    assert rank.begin("twice", torch.ones(1))().item() == 2  # it answers on


def test_a_rank_that_left_is_reported():
    rank = served("hello")
    for method in ("leave", "about_itself"):
        with pytest.raises(JobError, match="the process of GPU 2 of this job, its rank 1, ended with exit code 3: "):
            rank.begin(method)()


def test_a_rank_that_is_not_needed_is_ended():
    rank = served("hello")
    pid, *_ = rank.begin("about_itself")()
    del rank
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_a_rank_needs_a_leased_gpu_of_its_own(monkeypatch):
    with pytest.raises(JobError, match="device cuda:0 is given and the job needs several GPUs: use device auto"):
        Rank(1, "cuda:0", "tests.runtime.test_ranks:Served", "hello")
    monkeypatch.setattr(device, "_leased", ["GPU-a", "GPU-b"])
    assert device.gpu_of_rank(1, "cuda") == "GPU-b"
