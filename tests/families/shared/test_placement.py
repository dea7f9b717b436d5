"""Where the weights of a network go: straight to the device, or to main memory with or without a stream."""

from pathlib import Path

import pytest
import torch

from stages.families.shared import loading
from stages.families.shared.transformer import SPARE, place
from stages.runtime import device, memory
from tests.commands import events

GPU = torch.device("cuda:1")


class Recorder(torch.nn.Linear):
    """A network that records how it would be offloaded."""

    def enable_group_offload(self, **settings):
        self.settings = settings


@pytest.fixture
def placed(monkeypatch):
    """A function that offloads a network of 1 GiB with so many GiB of main memory free, and returns diffusers' settings."""
    monkeypatch.setattr("stages.families.shared.transformer.weights_size", lambda network: 2**30)

    def run(free, *arguments):
        monkeypatch.setattr(memory, "main_memory", lambda: free * 2**30)
        network = Recorder(1, 1)
        place(network, GPU, *arguments)
        return network.settings

    return run


@pytest.mark.parametrize(
    ("stream", "free", "streams"),
    [(None, 1 + SPARE // 2**30, True), (None, SPARE // 2**30, False), (True, 0, True), (False, 1000, False)],
)
def test_offloaded_weights_have_a_stream_where_main_memory_has_room_for_a_copy(stream, free, streams, placed):
    settings = placed(free, "block_level", 1, stream)
    assert (settings["use_stream"], settings["record_stream"]) == (streams, streams)
    assert (settings["offload_type"], settings["num_blocks_per_group"]) == ("block_level", 1)


def test_blocks_that_a_stream_moves_one_by_one_are_reported(placed, capsys):
    assert placed(1000, "block_level", 4, None)["num_blocks_per_group"] == 1
    (line,) = events(capsys.readouterr().err)
    assert line["reason"] == "offload_blocks is 4, and with a stream blocks move one by one"
    assert placed(0, "block_level", 4, None)["num_blocks_per_group"] == 4
    assert placed(1000, "leaf_level", 4, None)["num_blocks_per_group"] is None
    assert capsys.readouterr().err == ""


class Published:
    """A class of diffusers that records the settings with which it would be loaded."""

    @classmethod
    def load_config(cls):
        """Marks a class of diffusers."""

    @classmethod
    def from_pretrained(cls, place, **settings):
        cls.settings = settings
        return torch.nn.Linear(1, 1), {"missing_keys": []}


@pytest.mark.parametrize(("where", "mapped"), [("cpu", None), ("cuda:1", {"": GPU}), (GPU, {"": GPU})])
def test_weights_are_loaded_straight_to_a_gpu(where, mapped, tiny_wan):
    loading.load_network(Published, Path(tiny_wan["5b"]), "transformer", where, torch.float32)
    assert Published.settings.get("device_map") == mapped


@pytest.mark.parametrize(("share", "cores", "threads"), [(1 / 4, 8, 2), (1, 8, 8), (1 / 8, 4, 1), (0, 8, 1)])
def test_a_model_is_loaded_by_the_share_of_the_cores_that_belongs_to_the_gpu(share, cores, threads, monkeypatch):
    monkeypatch.setattr(device, "share_of_devices", lambda: share)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    torch.set_num_threads(1)
    with device.all_cores():
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 1
