"""Weights that do not fit are refused, or offloaded, before they are loaded."""

import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch import zeros

from stages.runtime import memory
from stages.runtime.errors import JobError
from stages.runtime.model import Model
from tests.commands import stage
from tests.runtime import toys
from tests.runtime.test_loop import item

GB = 10**9
TEXT = "text_encoder/model.safetensors"


def test_main_memory_is_at_most_the_system_total():
    with open("/proc/meminfo") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal"))
    assert 0 < memory.main_memory() <= total


def test_weights_larger_than_main_memory_are_refused_with_numbers(tiny_wan, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "main_memory", lambda: 1000)
    arguments = ("--prompt", "a cat", "--model", tiny_wan["5b"], "--frame-num", 5, "--size", "32*32", "--dtype", "float32")
    stderr = stage("encode", *arguments, "--output", tmp_path / "e.safetensors", fails=1)
    weights = (tiny_wan["5b"] / TEXT).stat().st_size  # which is loaded first, and the VAE after it
    sentence = [line for line in stderr.splitlines() if line.startswith("error: ")][-1]
    assert f"5b for encode takes {weights / 1e6:.1f} MB and this machine has 0.0 MB of memory free" in sentence
    assert not (tmp_path / "e.safetensors").exists()


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """A function that makes a loop on a simulated GPU with 1,000 bytes free, and a model whose one component has 4,000."""
    toys.FINISHED.clear()
    (tmp_path / "model/part").mkdir(parents=True)
    save_file({"weight": zeros(1000)}, tmp_path / "model/part/weights.safetensors")
    monkeypatch.setattr(memory, "gpu_memory", lambda device: 1000)
    monkeypatch.setattr("stages.runtime.loop.take_device", lambda device, threads, gpus, seen: "cuda")
    model = Model("mine", "toy", path=str(tmp_path / "model"))
    settings = {"model": model, "weights": ("part/*",), "in_memory": ({"part": "float32"},)}
    return lambda **implementation: toys.loop(tmp_path / "store", **settings, **implementation)


def test_weights_larger_than_the_gpu_are_offloaded_at_once(on_gpu, tmp_path):
    report = on_gpu(on_out_of_memory={"offload": "block_level"}).run([item(tmp_path, "a", "text")])
    assert (report.made, report.loads) == (1, 1)


def test_weights_larger_than_the_gpu_are_refused_without_offload(on_gpu, tmp_path):
    with pytest.raises(JobError, match="mine for toy takes 0.0 MB and cuda has 0.0 MB free: take a larger GPU"):
        on_gpu().run([item(tmp_path, "a", "text")])
    assert toys.FINISHED == []


def test_weights_that_fit_the_gpu_are_not_offloaded(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "gpu_memory", lambda device: GB)
    report = on_gpu(on_out_of_memory={"offload": "block_level"}).run([item(tmp_path, "a", "text")])
    assert (report.made, toys.FINISHED) == (1, ["a"])


def test_room_is_asked_for_after_the_previous_model_was_released(on_gpu, tmp_path, monkeypatch):
    class Network:
        """Stands for weights on the GPU."""

    loaded, loaded_when_asked = weakref.WeakSet(), []

    def load(worker, options):
        worker.network = Network()
        worker.network.itself = worker.network  # a cycle, as some networks have
        loaded.add(worker.network)

    monkeypatch.setattr(toys.Toy, "phases", lambda worker: ("high", "low"))
    monkeypatch.setattr(toys.Toy, "load", load)
    monkeypatch.setattr(memory, "gpu_memory", lambda device: loaded_when_asked.append(len(loaded)) or GB)
    report = on_gpu(on_out_of_memory={"offload": "block_level"}).run([item(tmp_path, "a", "text")])
    assert (report.made, report.loads, loaded_when_asked) == (1, 2, [0, 0])


def test_a_model_that_no_item_needs_in_a_phase_is_not_loaded(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "gpu_memory", lambda device: GB)
    monkeypatch.setattr(toys.Toy, "phases", lambda worker: ("high", "low"))
    monkeypatch.setattr(toys.Toy, "uses_model", lambda worker, work: worker.phase == "low")
    assert on_gpu().run([item(tmp_path, "a", "text")]).loads == 1


def test_free_memory_of_a_gpu_includes_what_torch_keeps(monkeypatch):
    for name, value in {"mem_get_info": (10, 100), "memory_reserved": 70, "memory_allocated": 30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.gpu_memory("cuda:0") == 10 + 40
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert memory.gpu_memory("cuda") == 2 * (10 + 40)


V1 = {"memory.limit_in_bytes": 1000, "memory.usage_in_bytes": 700, "memory.stat": "total_inactive_file 30\nother 5"}
V2 = {"memory.max": 1000, "memory.current": 700, "memory.stat": "inactive_file 20\nactive_file 10\nanon 600"}


def write_group(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


@pytest.mark.parametrize(
    ("groups", "place", "files", "room"),
    [
        ("0::/system.slice/job_7/step_0", "system.slice/job_7", V2, [330]),  # Slurm: the limit is that of the job
        ("0::/", "", V2, [330]),  # in a container with a namespace of its own
        ("0::/system.slice/job_7", "system.slice/job_7", {**V2, "memory.max": "max"}, []),
        ("5:cpuset:/a\n4:memory:/slurm/job_7\n0::/", "memory/slurm", V1, [330]),
        ("4:memory:/docker/abc", "memory", V1, [330]),  # in a container that sees its own group as the root
        ("4:memory:/docker/abc", "cpuset", V1, []),
        ("4:memory:/a", "memory/a", {**V1, "memory.usage_in_bytes": 2000}, [0]),
        ("", "", V2, []),
    ],
)
def test_limits_of_control_groups_count_as_main_memory(groups, place, files, room, tmp_path):
    write_group(tmp_path / "cgroup" / place, files)
    assert list(memory.group_memory(groups, tmp_path / "cgroup")) == room


def test_main_memory_is_at_most_what_the_control_group_leaves(tmp_path, monkeypatch):
    before = memory.main_memory()
    write_group(tmp_path / "cgroup", V2)
    (tmp_path / "groups").write_text("0::/\n")
    monkeypatch.setattr(memory, "GROUPS_OF_PROCESS", tmp_path / "groups")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    assert memory.main_memory() == 330 < before
