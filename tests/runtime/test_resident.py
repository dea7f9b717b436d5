"""Parts of models that stay in memory: where they lie, what makes room first, and what is never moved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.runtime.model import Model
from stages.runtime.resident import Residents
from stages.runtime.unchanged import file_states

GB = 10**9
MODEL = Model("model", "wan", path=".")


@dataclass(frozen=True)
class Device:
    type: str


GPU, MAIN = Device("cuda"), Device("cpu")


class Tensor:
    """A tensor without numbers: its bytes and its device."""

    def __init__(self, nbytes: int, device: Device):
        self.nbytes, self.device = nbytes, device

    @property
    def data(self) -> Tensor:
        return self

    @data.setter
    def data(self, other: Tensor) -> None:
        self.device = other.device

    @property
    def is_cuda(self) -> bool:
        return self.device == GPU

    def cpu(self) -> Tensor:
        return Tensor(self.nbytes, MAIN)

    def pin_memory(self) -> Tensor:
        return self

    def to(self, device: Device, non_blocking: bool) -> Tensor:
        return Tensor(self.nbytes, device)


class Network:
    """A network of one weight."""

    def __init__(self, size: float, device: Device = GPU):
        self.weight = Tensor(round(size * GB), device)

    def parameters(self):
        return iter([self.weight])

    def buffers(self):
        return iter([])


class Machine:
    """A GPU and main memory of these sizes, in GB, and the parts that one process keeps on them."""

    def __init__(self, gpu: float, main: float = 256, working: float = 0):
        self.gpu, self.main = gpu * GB, main * GB
        self.loads: list[str] = []
        self.residents = Residents(self.gpu_room, self.main_room)
        self.residents.keeps = True
        self.residents.working = round(working * GB)

    def gpu_room(self) -> int:
        return round(self.gpu - sum(one.bytes for one in self.residents.kept.values() if one.is_on_gpu))

    def main_room(self) -> int:
        kept = self.residents.kept
        return round(self.main - sum(one.bytes for one in kept.values() if one.copies or one.device == MAIN))

    def use(self, part: str, size: float, device: Device = GPU) -> Network:
        """A part as a stage takes it: room is made first, then it is loaded or moved."""

        def load() -> Network:
            self.loads.append(part)
            return Network(size, device)

        self.residents.begin()
        self.residents.make_room(MODEL, {part: round(size * GB)}, on_gpu=device == GPU)
        return self.residents.take(MODEL, part, load)

    def places(self) -> dict[str, str]:
        """Where each part lies: gpu, or main."""
        return {name.part: "gpu" if one.is_on_gpu else "main" for name, one in self.residents.kept.items()}


def test_a_part_is_loaded_once_and_is_the_same_object():
    machine = Machine(80)
    assert machine.use("vae", 1) is machine.use("vae", 1)
    assert machine.loads == ["vae"]


def test_other_settings_are_another_part():
    residents = Machine(80).residents
    one = residents.take(MODEL, "text_encoder", lambda: Network(1), "bfloat16")
    other = residents.take(MODEL, "text_encoder", lambda: Network(2), "float32")
    assert one is not other


def test_the_least_recently_used_part_leaves_the_gpu_for_main_memory_and_comes_back():
    machine = Machine(50)
    for part in ("captioner", "high", "captioner", "low"):
        machine.use(part, 20)
    assert machine.places() == {"high": "main", "captioner": "gpu", "low": "gpu"}
    machine.use("high", 20)
    assert machine.places() == {"captioner": "main", "low": "gpu", "high": "gpu"}
    assert machine.loads == ["captioner", "high", "low"]


def test_room_for_the_work_is_kept_free():
    machine = Machine(50, working=15)
    machine.use("captioner", 20)
    machine.use("high", 20)
    assert machine.places() == {"captioner": "main", "high": "gpu"}


def test_a_part_in_use_stays_where_it_is():
    machine = Machine(50)
    machine.use("high", 30)
    machine.residents.make_room(MODEL, {"low": 40 * GB}, on_gpu=True)  # no begin: high is in use
    assert machine.places() == {"high": "gpu"}


def test_a_part_that_finds_no_room_in_main_memory_is_dropped_alone():
    """In a circle of parts only one is loaded again in each round."""
    machine = Machine(30, main=50)
    for part in 3 * ["captioner", "text_encoder", "high", "low"]:
        machine.use(part, 20)
    assert machine.loads == ["captioner", "text_encoder", "high", "low", "high", "low", "high", "low"]


def test_a_copy_beside_the_gpu_gives_way_to_a_part_that_leaves_it():
    machine = Machine(50, main=30)
    for part in ("captioner", "high", "low", "captioner", "high"):
        machine.use(part, 20)
    assert machine.places() == {"low": "main", "captioner": "gpu", "high": "gpu"}
    assert machine.loads == ["captioner", "high", "low", "high"]  # main memory had no room for high


def test_a_part_in_main_memory_by_choice_is_never_moved_to_the_gpu():
    machine = Machine(24)
    offloaded = machine.use("high", 28, MAIN)  # its groups of layers go to the GPU one by one
    machine.use("vae", 1)
    assert machine.use("high", 28, MAIN) is offloaded and machine.places()["high"] == "main"
    assert machine.loads == ["high", "vae"]


def test_after_memory_ran_out_all_unused_parts_leave_the_gpu():
    machine = Machine(80)
    for part in ("captioner", "text_encoder", "high"):
        machine.use(part, 10)
    assert machine.residents.unused_on_gpu() == ["captioner", "text_encoder"]
    machine.residents.leave_gpu()
    assert machine.places() == {"captioner": "main", "text_encoder": "main", "high": "gpu"}
    assert not machine.residents.unused_on_gpu()


def test_a_model_whose_files_changed_is_loaded_again():
    machine = Machine(80)
    machine.use("vae", 1)
    machine.residents.forget(MODEL)
    machine.use("vae", 1)
    assert machine.loads == ["vae", "vae"]


def test_a_model_whose_files_changed_between_two_stages_is_loaded_again(tmp_path):
    machine = Machine(100, 100)
    file = tmp_path / "model.safetensors"
    file.write_text("old")
    changes = [lambda: None, lambda: None, lambda: file.write_text("new"), file.unlink]
    for change, loads in zip(changes, (1, 1, 2, 3)):
        change()
        machine.residents.note_states(MODEL, file_states([file]))
        machine.use("vae", 1)
        assert machine.loads == ["vae"] * loads


@pytest.mark.parametrize("anything", ["a tokenizer", None])
def test_something_small_is_kept_too(anything):
    residents = Machine(1).residents
    assert residents.take(MODEL, "tokenizer", lambda: anything) is anything
    residents.begin()
    for on_gpu in (True, False):
        residents.make_room(MODEL, {"high": 10**12}, on_gpu)
    assert residents.take(MODEL, "tokenizer", lambda: pytest.fail("loaded again")) is anything


def test_without_keeping_every_take_loads():
    residents = Machine(80).residents
    residents.keeps = False
    assert residents.take(MODEL, "vae", lambda: Network(1)) is not residents.take(MODEL, "vae", lambda: Network(1))
    assert not residents.kept


def test_room_for_the_work_grows_with_what_it_took():
    machine = Machine(80, working=5)
    machine.use("high", 30)
    machine.residents.note_peak(42 * GB)
    assert machine.residents.working == 12 * GB
    machine.residents.note_peak(31 * GB)
    assert machine.residents.working == 12 * GB


def test_what_is_already_on_the_gpu_is_not_counted_again():
    machine = Machine(80)
    machine.use("vae", 1)
    sizes = {"vae": GB, "image_encoder": 3 * GB}
    assert machine.residents.make_room(MODEL, sizes, on_gpu=True) == 3 * GB


# ----------------------------------------------------------------------------------------------------- the table of the docs

PARTS = {  # bytes in GB of what a link of a chain takes, in its order: bfloat16, the VAE in float32
    "Wan2.2 A14B": {"captioner": 17.1, "text_encoder": 11.4, "vae": 0.5, "transformer": 28.6, "transformer_2": 28.6},
    "Wan2.2 5B": {"captioner": 17.1, "text_encoder": 11.4, "vae": 2.8, "transformer": 10.0},
}
GPUS = (24, 48, 80, 141)
PLACES = {"gpu": "GPU", "main": "main memory"}


def chain_of_two_links(parts: dict[str, float], gpu: float, main: float) -> Machine:
    """The parts after two links of a chain. A part that is larger than the GPU works from main memory, layer by layer."""
    machine = Machine(gpu, main, working=8)
    for _ in range(2):
        machine.loads = []
        for part in (*parts, "vae"):
            machine.use(part, parts[part], MAIN if parts[part] > gpu else GPU)
    return machine


def place_of(machine: Machine, part: str, size: float) -> str:
    if size * GB > machine.gpu:
        return "main memory, by layers" + (", loaded per link" if part in machine.loads else "")
    if part in machine.loads:
        return "loaded per link"
    return PLACES[machine.places()[part]]


def table_of_places() -> str:
    head = ["model", "part", "GB", "main memory", *(f"{gpu} GB" for gpu in GPUS)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for model, parts in PARTS.items():
        for main in (128, 64):
            machines = [chain_of_two_links(parts, gpu, main) for gpu in GPUS]
            for part, size in parts.items():
                cells = [place_of(machine, part, size) for machine in machines]
                lines.append(f"| {model} | {part} | {size} | {main} GB | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_table_of_the_docs_is_where_parts_lie():
    assert table_of_places() in (Path(__file__).parents[2] / "docs/cluster.md").read_text()


def test_a_gpu_with_room_for_all_loads_nothing_in_the_second_link():
    for parts in PARTS.values():
        assert chain_of_two_links(parts, 141, 64).loads == []
        assert chain_of_two_links(parts, 24, 256).loads == []  # main memory has room
