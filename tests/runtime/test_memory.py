"""Weights that do not fit are refused, or offloaded, before they are loaded."""

import pytest
from safetensors.torch import save_file
from torch import zeros

from stages.runtime import memory
from stages.runtime.errors import JobError
from stages.runtime.model import Model
from tests.commands import stage
from tests.runtime import toys
from tests.runtime.test_loop import item

GB = 10**9


def test_free_main_memory_is_what_the_system_says():
    with open("/proc/meminfo") as file:
        total = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal"))
    assert 0 < memory.main_memory() <= total


def test_a_refusal_names_the_model_and_the_numbers(tiny_wan, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "main_memory", lambda: 1000)
    arguments = ("--prompt", "a cat", "--model", tiny_wan["5b"], "--frame-num", 5, "--size", "32*32", "--dtype", "float32")
    said = stage("encode", *arguments, "--output", tmp_path / "e.safetensors", fails=1)
    weights = sum(
        f.stat().st_size for part in ("text_encoder", "vae") for f in (tiny_wan["5b"] / part).glob("*.safetensors")
    )
    sentence = [line for line in said.splitlines() if line.startswith("error: ")][-1]
    assert f"5b for encode takes {weights / 1e6:.1f} MB and this machine has 0.0 MB of memory free" in sentence
    assert not (tmp_path / "e.safetensors").exists()


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    """A loop on a pretended GPU with room for 1,000 bytes, and a model whose one component has 4,000."""
    toys.MADE.clear()
    (tmp_path / "model/part").mkdir(parents=True)
    save_file({"weight": zeros(1000)}, tmp_path / "model/part/weights.safetensors")
    monkeypatch.setattr(memory, "gpu_memory", lambda device: 1000)
    monkeypatch.setattr("stages.runtime.loop.take_device", lambda device, threads, gpus: "cuda")
    model = Model("mine", "toy", path=str(tmp_path / "model"))
    given = {"model": model, "weights": ("part/*",), "resident": ((("part", "float32"),),)}
    return lambda **plant: toys.loop(tmp_path / "store", **given, **plant)


def test_what_is_too_large_for_a_gpu_is_offloaded_at_once_where_that_can_be(on_gpu, tmp_path):
    report = on_gpu(memory_saving={"offload": "block_level"}).run([item(tmp_path, "a", "text")])
    assert (report.made, report.loads) == (1, 1)


def test_and_else_refused(on_gpu, tmp_path):
    with pytest.raises(JobError, match="mine for toy takes 0.0 MB and cuda has 0.0 MB free: take a larger GPU"):
        on_gpu().run([item(tmp_path, "a", "text")])
    assert toys.MADE == []


def test_weights_that_fit_are_loaded_as_they_are(on_gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "gpu_memory", lambda device: GB)
    report = on_gpu(memory_saving={"offload": "block_level"}).run([item(tmp_path, "a", "text")])
    assert (report.made, toys.MADE) == (1, ["a"])
