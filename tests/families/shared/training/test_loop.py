"""The training loop: it resumes to identical weights, keeps its best model, and reports faults in one sentence."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from itertools import islice

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import Dataset

from stages.families.shared.training.data import EpochBatchSampler, ShapesDataset, collate
from stages.families.shared.training.loop import Task, train
from stages.families.shared.training.options import FolderTrainingOptions
from stages.runtime.errors import JobError, UsageError
from tests import commands
from tests.commands import wait_for
from tests.conftest import TINY_TEXT2VIDEO
from tests.families.shared.training.test_data import COLORS, write_clip

STEPS = 9


class Stop(BaseException):
    """A stand-in for SIGKILL: nothing in the program catches it."""


class Points(Dataset):
    """Points of a plane. The access number `stop` raises Stop, and the item of key `bad_key` has an infinite target.

    At access `signalled[0]` the process sends itself the signal `signalled[1]`, and once more at access `again`.
    """

    def __init__(
        self,
        stop: int | None = None,
        bad_key: tuple[int, int] | None = None,
        signalled: tuple[int, int] = (0, 0),
        again: int = 0,
    ):
        self.stop, self.bad_key, self.signalled, self.again, self.asked = stop, bad_key, signalled, again, 0

    def __len__(self):
        return 10

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (0, key)
        self.asked += 1
        if self.asked == self.stop:
            raise Stop
        if self.asked in (self.signalled[0], self.again):
            os.kill(os.getpid(), self.signalled[1])
        x = torch.randn(3, generator=torch.Generator().manual_seed(100 * epoch + index))
        return {"x": x, "y": x.sum() / (key != self.bad_key), "name": f"point {index}"}


class Plane(Task):
    """Finds a plane through points. `noise` scales the random numbers that a step draws."""

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


def run_training(folder, task=None, **values):
    """Run a training to its end and return its folder."""
    defaults = {"data": "points", "batch_size": 2, "max_steps": STEPS, "warmup_steps": 3, "learning_rate": 1e-2}
    rhythm = {"save_every": 3, "validate_every": 4}
    train(task or Plane(), FolderTrainingOptions.resolved({**defaults, **rhythm, **values}), folder, cpu=True)
    return folder


def are_equal(first, second) -> bool:
    first, second = load_file(first), load_file(second)
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def history(folder):
    losses = json.loads((folder / "training.json").read_text())["history"]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in losses]


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("stop", [1, 7, 8, 13, 18])
@pytest.mark.parametrize("values", [{}, {"gradient_accumulation": 2}, {"ema_decay": 0.5, "schedule": "constant"}])
def test_an_interrupted_training_resumes_to_identical_weights(stop, values, tmp_path):
    whole = run_training(tmp_path / "whole", **values)
    stop *= values.get("gradient_accumulation", 1)
    with pytest.raises(Stop):
        run_training(tmp_path / "stopped", Plane(stop=stop), **values)
    resumed = run_training(tmp_path / "stopped", **values)
    assert are_equal(resumed / "last.safetensors", whole / "last.safetensors")
    assert are_equal(resumed / "model" / "plane.safetensors", whole / "model" / "plane.safetensors")
    assert history(resumed) == history(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", [1, 2, 7, 10, 17])
def test_a_training_stopped_by_a_signal_saves_its_step(place, number, tmp_path):
    """In the middle of a step, whatever save_every says. Two clips are read for each step."""
    whole = run_training(tmp_path / "whole", validate_every=100)
    step = math.ceil(place / 2)
    message = f"the training was stopped at step {step} of {STEPS}: the same command goes on there"
    if step == STEPS:
        run_training(tmp_path / "stopped", Plane(signalled=(place, number)), save_every=100, validate_every=100)
    else:
        with pytest.raises(JobError, match=message):
            run_training(tmp_path / "stopped", Plane(signalled=(place, number)), save_every=100, validate_every=100)
        assert not (tmp_path / "stopped" / "training.json").exists()
        with safe_open(tmp_path / "stopped" / "last.safetensors", "pt") as file:
            assert json.loads(file.metadata()["facts"])["step"] == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = run_training(tmp_path / "stopped", validate_every=100)
    assert are_equal(resumed / "last.safetensors", whole / "last.safetensors")
    assert are_equal(resumed / "model" / "plane.safetensors", whole / "model" / "plane.safetensors")
    assert history(resumed) == history(whole)


def test_second_ctrl_c_does_not_wait_for_the_step(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_training(tmp_path / "a", Plane(signalled=(3, signal.SIGINT), again=4))


def test_ctrl_c_of_a_training_that_reads_ahead_ends_in_one_sentence(tmp_path):
    """As a terminal sends it: to the command and to the processes that read clips for it."""
    for name in "abcd":
        write_clip(tmp_path / "data", name, COLORS)
    options = {**TINY_TEXT2VIDEO, "data": str(tmp_path / "data"), "num_workers": 1, "max_steps": 100_000}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    command = (sys.executable, "-m", "stages.train", "text2video", "--config", tmp_path / "config.yaml", "--device", "cpu")
    command = (*command, "--output", tmp_path / "t", "--threads", "1")
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(list(map(str, command)), stderr=said, start_new_session=True)
        wait_for((tmp_path / "t/model").is_dir, "the training makes no model")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 1
    lines = [line for line in (tmp_path / "said").read_text().splitlines() if not line.startswith("{")]
    (step,) = re.fullmatch(r"error: the training was stopped at step (\d+) of 100000: .*", lines[-1]).groups()
    assert not any("Traceback" in line for line in lines)
    again = commands.train(
        "text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "t", "--max-steps", step
    )
    assert f'"resumed", "step": {step}' in again


def test_an_interrupted_text2video_training_resumes_to_identical_weights(tiny_text2video, tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY_TEXT2VIDEO))
    command = ("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "stopped")
    requested, draw = [], ShapesDataset.__getitem__

    def draw_and_stop(self, key):
        requested.append(key)
        if len(requested) == 2 * 2 + 2 + 2:  # two batches, the validation, one more batch: a state has been saved
            raise KeyboardInterrupt
        return draw(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(ShapesDataset, "__getitem__", draw_and_stop)
        stderr = commands.train(*command, fails=1)
        assert "Traceback" not in stderr
    assert not (tmp_path / "stopped" / "training.json").exists()  # it is written at the end of a training
    assert '"resumed", "step": 2' in commands.train(*command)
    for name in ("last", "model/unet/diffusion_pytorch_model", "model/text_encoder/model"):
        assert are_equal(tmp_path / "stopped" / f"{name}.safetensors", tiny_text2video / f"{name}.safetensors")


def test_a_finished_training_is_not_changed(tmp_path, capsys):
    folder = run_training(tmp_path / "a")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    run_training(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert '"trained_before"' in capsys.readouterr().err


def test_a_longer_training_continues_a_shorter_one(tmp_path):
    folder = run_training(tmp_path / "a", max_steps=4)
    run_training(folder, max_steps=6)
    assert [entry["step"] for entry in history(folder)] == [4, 6]


@pytest.mark.parametrize("name, value", [("batch_size", 4), ("seed", 1), ("data", "other"), ("gradient_accumulation", 2)])
def test_resuming_a_training_with_other_options_is_refused(name, value, tmp_path):
    folder = run_training(tmp_path / "a", max_steps=3)
    with pytest.raises(UsageError, match=f"{name} is {value!r} and the training in .* was begun with .*: keep it, or give"):
        run_training(folder, **{name: value})


@pytest.mark.parametrize("damage", ["torn", "of another model", "of another program"])
def test_a_training_state_that_does_not_fit_is_one_sentence(damage, tmp_path):
    folder = run_training(tmp_path / "a", max_steps=3)
    path = folder / "last.safetensors"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "of another model":
        tensors = {name: tensor for name, tensor in load_file(path).items() if name != "weight.net.0.weight"}
        save_file(tensors, path, {"facts": json.dumps({})})
    else:
        save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(JobError, match="last.safetensors does not go with this training .*: give another --output, or remo"):
        run_training(folder)


# ---------------------------------------------------------------------------------------------------------------- step


def test_accumulated_batches_equal_one_large_batch(tmp_path):
    large = run_training(tmp_path / "large", Plane(noise=0), batch_size=4)
    parts = run_training(tmp_path / "parts", Plane(noise=0), batch_size=2, gradient_accumulation=2)
    weights = load_file(large / "last.safetensors")
    for name, tensor in load_file(parts / "last.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6)
    assert history(parts)[-1]["loss"] == pytest.approx(history(large)[-1]["loss"], abs=1e-6)


def test_training_steps_are_those_of_adamw_with_clipped_gradients(tmp_path):
    """The weights after a few steps equal those of torch's optimizer in a plain loop over the same batches."""
    folder = run_training(tmp_path / "a", Plane(noise=0), max_steps=5, warmup_steps=0, max_grad_norm=0.5, ema_decay=0.9)
    task = Plane(noise=0)
    adam = torch.optim.AdamW(task.parameters(), lr=1e-2, weight_decay=0.01, betas=(0.9, 0.98))
    average = {name: weight.detach().clone() for name, weight in task.named_parameters()}
    for step, keys in zip(range(5), EpochBatchSampler(10, 2, 0)):
        adam.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 5)) / 2
        adam.zero_grad()
        task(collate([task.data[0][key] for key in keys]), step, torch.Generator()).backward()
        nn.utils.clip_grad_norm_(task.parameters(), 0.5)
        adam.step()
        decay = min(0.9, (1 + step) / (10 + step)) if step else 0  # as in diffusers' EMAModel
        for name, weight in task.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * weight.detach()
    state = load_file(folder / "last.safetensors")
    for name, weight in task.named_parameters():
        torch.testing.assert_close(state[f"weight.{name}"], weight.detach(), rtol=0, atol=1e-6)
        torch.testing.assert_close(state[f"average.{name}"], average[name], rtol=0, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path):
    *_, (bad, other) = islice(EpochBatchSampler(10, 2, 0), 7)
    message = f"the loss became inf at step 7, with the clips point {bad[1]}, point {other[1]}: look at these clips"
    with pytest.raises(JobError, match=message):
        run_training(tmp_path / "a", Plane(bad_key=bad), save_every=1)
    state = load_file(tmp_path / "a" / "last.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    run_training(tmp_path / "a")
    assert history(tmp_path / "a")[-1]["step"] == STEPS


def test_a_loss_that_is_not_finite_is_exit_code_1(tmp_path, monkeypatch):
    draw = ShapesDataset.__getitem__

    def make_bad(self, key):
        item = draw(self, key)
        return {**item, "video": item["video"] / 0} if isinstance(key, tuple) else item

    monkeypatch.setattr(ShapesDataset, "__getitem__", make_bad)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(TINY_TEXT2VIDEO))
    stderr = commands.train("text2video", "--config", tmp_path / "config.yaml", "--output", tmp_path / "a", fails=1)
    assert (
        "error: the loss became" in stderr and "at step 1, with the clips shapes 1/" in stderr and "Traceback" not in stderr
    )


# ------------------------------------------------------------------------------------------------------------ validate


def test_the_kept_model_has_the_lowest_validation_loss(tmp_path):
    """At this learning rate the loss goes up and down, so that the kept model is not the last one."""
    folder = run_training(
        tmp_path / "a", learning_rate=0.6, schedule="constant", validate_every=1, max_steps=8, ema_decay=0.0
    )
    losses = [entry["validation_loss"] for entry in history(folder)]
    assert losses[-1] > min(losses)
    model = Plane()
    model.net.load_state_dict(load_file(folder / "model" / "plane.safetensors"))
    assert validation_loss(model) == pytest.approx(min(losses), rel=1e-5)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["logs", "model", "samples"]


def validation_loss(task: Plane) -> float:
    """Mean over the clips. The noise of a batch depends on its number."""
    losses = []
    for first in range(0, 10, 2):
        batch = collate([task.data[1][i] for i in (first, first + 1)])
        losses.append(task(batch, 0, torch.Generator().manual_seed(first)).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_tensorboard_holds_losses_rates_and_samples(schedule, tmp_path):
    folder = run_training(tmp_path / "a", schedule=schedule)
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


def test_the_report_of_a_training_is_plain_json(tmp_path):
    run_training(tmp_path / "a", Plane(), validate_every=100)

    def refuse(constant):
        raise AssertionError(constant)

    report = json.loads((tmp_path / "a" / "training.json").read_text(), parse_constant=refuse)
    assert (report["steps"], report["options"]["batch_size"], report["parameters"]) == (STEPS, 2, 3 * 8 + 8 + 8 + 1)


# ---------------------------------------------------------------------------------------------------------------- usage


def test_missing_wandb_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.families.shared.training.loop.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="wandb is not installed: pip install wandb"):
        run_training(tmp_path / "a", wandb=True)
    assert not (tmp_path / "a").exists()


def test_fp16_training_on_the_cpu_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="mixed_precision is fp16 and this training runs on the CPU: use no or bf16"):
        run_training(tmp_path / "a", mixed_precision="fp16")


def test_a_training_follows_no_planted_links_in_its_output(tmp_path):
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
    run_training(output)
    assert [(path.name, path.read_text()) for path in precious.iterdir()] == [("text", "precious")]
    assert json.loads((output / "training.json").read_text())["steps"] == STEPS
