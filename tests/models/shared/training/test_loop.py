"""What a training promises: it goes on to the same bits, keeps its best model, and says clearly what is wrong."""

import json
import math
import os
from itertools import islice

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import Dataset

from stages.models.shared.training.data import Order, ShapesDataset, collate
from stages.models.shared.training.loop import Task, train
from stages.models.shared.training.options import shared
from stages.runtime.errors import JobError, UsageError
from stages.runtime.options import resolve
from tests import commands
from tests.conftest import TINY_TEXT2VIDEO

STEPS = 9


class Stop(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


class Points(Dataset):
    """Points of a plane. The item at place `stop` of all that are asked for is never given, that of key `spoilt` is bad."""

    def __init__(self, stop: int | None = None, spoilt: tuple[int, int] | None = None):
        self.stop, self.spoilt, self.asked = stop, spoilt, 0

    def __len__(self):
        return 10

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (0, key)
        self.asked += 1
        if self.asked == self.stop:
            raise Stop
        x = torch.randn(3, generator=torch.Generator().manual_seed(100 * epoch + index))
        return {"x": x, "y": x.sum() / (key != self.spoilt), "name": f"point {index}"}


class Plane(Task):
    """Finds a plane through points; `noise` is what a step draws for itself."""

    def __init__(self, noise: float = 0.1, **points):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.noise = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 1)), noise
        self.data = Points(**points), Points()

    def forward(self, batch, step, generator):
        noise = self.noise * torch.randn(batch["x"].shape, generator=generator)
        return ((self.net(batch["x"] + noise)[:, 0] - batch["y"]) ** 2).mean()

    def sample(self, batch):
        return [("plane", torch.zeros(2, 8, 8, 3, dtype=torch.uint8).numpy())]

    def save(self, folder, dtype):
        folder.mkdir()
        save_file(self.net.state_dict(), folder / "plane.safetensors")


def trained(folder, task=None, **given):
    """The folder of a training to the end."""
    own = {"data": "points", "batch_size": 2, "max_steps": STEPS, "warmup_steps": 3, "learning_rate": 1e-2}
    rhythm = {"save_every": 3, "validate_every": 4}
    train(task or Plane(), resolve(shared(), {**own, **rhythm, **given}), folder, cpu=True)
    return folder


def same(first, second) -> bool:
    one, other = load_file(first), load_file(second)
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def history(folder):
    losses = json.loads((folder / "training.json").read_text())["history"]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in losses]


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("stop", [1, 7, 8, 13, 18])
@pytest.mark.parametrize("given", [{}, {"gradient_accumulation": 2}, {"ema_decay": 0.5, "schedule": "constant"}])
def test_interrupted_training_goes_on_to_the_same_bits(stop, given, tmp_path):
    whole = trained(tmp_path / "whole", **given)
    stop *= given.get("gradient_accumulation", 1)
    with pytest.raises(Stop):
        trained(tmp_path / "stopped", Plane(stop=stop), **given)
    resumed = trained(tmp_path / "stopped", **given)
    assert same(resumed / "last.safetensors", whole / "last.safetensors")
    assert same(resumed / "model" / "plane.safetensors", whole / "model" / "plane.safetensors")
    assert history(resumed) == history(whole)


def test_interrupted_text2video_goes_on_to_the_same_bits(tiny_text2video, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY_TEXT2VIDEO))
    command = ("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "stopped")
    asked, draw = [], ShapesDataset.__getitem__

    def draw_and_stop(self, key):
        asked.append(key)
        if len(asked) == 2 * 2 + 2 + 2:  # two batches, those of the validation, one more: a state is saved by then
            raise KeyboardInterrupt
        return draw(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(ShapesDataset, "__getitem__", draw_and_stop)
        said = commands.train(*command, fails=1)
        assert "Traceback" not in said
    assert not (tmp_path / "stopped" / "training.json").exists()  # that is for a training at its end
    assert '"resumed", "step": 2' in commands.train(*command)
    for name in ("last", "model/unet/diffusion_pytorch_model", "model/text_encoder/model"):
        assert same(tmp_path / "stopped" / f"{name}.safetensors", tiny_text2video / f"{name}.safetensors")


def test_finished_training_is_left_as_it_is(tmp_path, capsys):
    folder = trained(tmp_path / "a")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    trained(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert '"trained_before"' in capsys.readouterr().err


def test_longer_training_goes_on_from_a_shorter_one(tmp_path):
    folder = trained(tmp_path / "a", max_steps=4)
    trained(folder, max_steps=6)
    assert [entry["step"] for entry in history(folder)] == [4, 6]


@pytest.mark.parametrize("name, value", [("batch_size", 4), ("seed", 1), ("data", "other"), ("gradient_accumulation", 2)])
def test_other_options_than_it_was_begun_with_are_refused(name, value, tmp_path):
    folder = trained(tmp_path / "a", max_steps=3)
    with pytest.raises(UsageError, match=f"{name} is {value!r} and the training in .* was begun with .*: keep it, or give"):
        trained(folder, **{name: value})


@pytest.mark.parametrize("damage", ["torn", "of another model", "of another program"])
def test_state_that_does_not_fit_is_one_sentence(damage, tmp_path):
    folder = trained(tmp_path / "a", max_steps=3)
    path = folder / "last.safetensors"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "of another model":
        tensors = {name: tensor for name, tensor in load_file(path).items() if name != "weight.net.0.weight"}
        save_file(tensors, path, {"facts": json.dumps({})})
    else:
        save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(JobError, match="last.safetensors does not go with this training .*: give another --output, or remo"):
        trained(folder)


# ---------------------------------------------------------------------------------------------------------------- step


def test_accumulated_batches_are_one_large_batch(tmp_path):
    large = trained(tmp_path / "large", Plane(noise=0), batch_size=4)
    parts = trained(tmp_path / "parts", Plane(noise=0), batch_size=2, gradient_accumulation=2)
    weights = load_file(large / "last.safetensors")
    for name, tensor in load_file(parts / "last.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6)
    assert history(parts)[-1]["loss"] == pytest.approx(history(large)[-1]["loss"], abs=1e-6)


def test_steps_are_those_of_adamw_with_cut_gradients(tmp_path):
    """The weights after a few steps, by torch's optimizer in a plain loop over the same batches."""
    folder = trained(tmp_path / "a", Plane(noise=0), max_steps=5, warmup_steps=0, max_grad_norm=0.5, ema_decay=0.9)
    task = Plane(noise=0)
    adam = torch.optim.AdamW(task.parameters(), lr=1e-2, weight_decay=0.01, betas=(0.9, 0.98))
    average = {name: weight.detach().clone() for name, weight in task.named_parameters()}
    for step, keys in zip(range(5), Order(10, 2, 0)):
        adam.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 5)) / 2
        adam.zero_grad()
        task(collate([task.data[0][key] for key in keys]), step, torch.Generator()).backward()
        nn.utils.clip_grad_norm_(task.parameters(), 0.5)
        adam.step()
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0  # of diffusers' EMAModel
        for name, weight in task.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * weight.detach()
    made = load_file(folder / "last.safetensors")
    for name, weight in task.named_parameters():
        torch.testing.assert_close(made[f"weight.{name}"], weight.detach(), rtol=0, atol=1e-6)
        torch.testing.assert_close(made[f"average.{name}"], average[name], rtol=0, atol=1e-6)


def test_loss_that_is_not_finite_stops_and_keeps_the_state_before(tmp_path):
    *_, (bad, other) = islice(Order(10, 2, 0), 7)
    said = f"the loss became inf at step 7, with the clips point {bad[1]}, point {other[1]}: look at these clips"
    with pytest.raises(JobError, match=said):
        trained(tmp_path / "a", Plane(spoilt=bad), save_every=1)
    state = load_file(tmp_path / "a" / "last.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    trained(tmp_path / "a")
    assert history(tmp_path / "a")[-1]["step"] == STEPS


def test_loss_that_is_not_finite_is_exit_code_1_of_the_command(tmp_path, monkeypatch):
    draw = ShapesDataset.__getitem__

    def spoil(self, key):
        item = draw(self, key)
        return {**item, "video": item["video"] / 0} if isinstance(key, tuple) else item

    monkeypatch.setattr(ShapesDataset, "__getitem__", spoil)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY_TEXT2VIDEO))
    said = commands.train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "a", fails=1)
    assert "error: the loss became" in said and "at step 1, with the clips shapes 1/" in said and "Traceback" not in said


# ------------------------------------------------------------------------------------------------------------ validate


def test_model_is_that_of_the_lowest_validation_loss(tmp_path):
    """With a rate at which the loss goes up and down, the model kept is not the last one."""
    folder = trained(tmp_path / "a", learning_rate=0.6, schedule="constant", validate_every=1, max_steps=8, ema_decay=0.0)
    losses = [entry["validation_loss"] for entry in history(folder)]
    assert losses[-1] > min(losses)
    model = Plane()
    model.net.load_state_dict(load_file(folder / "model" / "plane.safetensors"))
    assert validation_loss(model) == pytest.approx(min(losses), rel=1e-5)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["logs", "model", "samples"]


def validation_loss(task: Plane) -> float:
    """Mean over the clips; the noise of a batch is that of its place."""
    losses = []
    for first in range(0, 10, 2):
        batch = collate([task.data[1][i] for i in (first, first + 1)])
        losses.append(task(batch, 0, torch.Generator().manual_seed(first)).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_tensorboard_holds_losses_rates_and_samples(schedule, tmp_path):
    folder = trained(tmp_path / "a", schedule=schedule)
    log = EventAccumulator(str(folder / "logs" / "kinemake"))
    log.Reload()
    assert log.Tags()["images"] == ["samples"] and {"loss", "learning_rate", "validation_loss"} <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [event.step for event in log.Scalars("validation_loss")] == [4, 8, STEPS]
    rates = [1 / 3, 2 / 3, 1] + [
        (1 + math.cos(math.pi * step / 6)) / 2 if schedule == "cosine" else 1 for step in range(STEPS - 3)
    ]
    assert [event.value for event in log.Scalars("learning_rate")] == pytest.approx([1e-2 * rate for rate in rates])
    assert [event.step for event in log.Images("samples")] == [4, 8, STEPS]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"step_{n:07d}.png" for n in (4, 8, STEPS)]


def test_report_of_a_training_is_plain_json(tmp_path):
    trained(tmp_path / "a", Plane(), validate_every=100)

    def refuse(constant):
        raise AssertionError(constant)

    report = json.loads((tmp_path / "a" / "training.json").read_text(), parse_constant=refuse)
    assert (report["steps"], report["options"]["batch_size"], report["parameters"]) == (STEPS, 2, 3 * 8 + 8 + 8 + 1)


# ---------------------------------------------------------------------------------------------------------------- usage


def test_wandb_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.models.shared.training.loop.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="wandb is not installed: pip install wandb"):
        trained(tmp_path / "a", wandb=True)
    assert not (tmp_path / "a").exists()


def test_half_precision_on_the_cpu_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="mixed_precision is fp16 and this training runs on the CPU: use no or bf16"):
        trained(tmp_path / "a", mixed_precision="fp16")


def test_links_that_somebody_planted_in_the_output_are_not_followed(tmp_path):
    precious, output = tmp_path / "precious", tmp_path / "output"
    precious.mkdir()
    output.mkdir()
    (precious / "text").write_text("precious")
    for name, target in {
        "model.new": precious,
        "training.new": precious / "text",
        "training.json": precious / "text",
    }.items():
        (output / name).symlink_to(target)
    (output / f"last.safetensors.{os.getpid()}").symlink_to(precious / "text")
    trained(output)
    assert [(path.name, path.read_text()) for path in precious.iterdir()] == [("text", "precious")]
    assert json.loads((output / "training.json").read_text())["steps"] == STEPS
