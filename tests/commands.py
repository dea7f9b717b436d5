"""Running a stage as a user does."""

import importlib
import time
from pathlib import Path

import yaml
from click.testing import CliRunner


def stage(name: str, *arguments, fails: int = 0) -> str:
    """Run a stage's command in this process and return its standard error. `fails` is the exit code to expect."""
    command = importlib.import_module(f"stages.{name}").main
    if name in ("caption_vlm", "encode", "generate", "decode") and "--device" not in arguments:
        arguments = (*arguments, "--device", "cpu", "--threads", "1")
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.stderr or result.exception
    return result.stderr


def train(name: str, *arguments, fails: int = 0) -> str:
    """Run a training's command in this process and return its standard error. `fails` is the exit code to expect."""
    command = importlib.import_module("stages.train").main
    arguments = [name, *arguments, "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.stderr or result.exception
    return result.stderr


def trained(name: str, folder: Path, config: dict, *arguments, fails: int = 0):
    """The model of a training whose options are written to a file in `folder`; where it is to fail, its standard error."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    said = train(name, "--config", folder / "config.yaml", "--output", folder / "training", *arguments, fails=fails)
    return said if fails else folder / "training" / "model"


def convert(name: str, *arguments, fails: int = 0) -> str:
    """Run a conversion's command in this process and return its standard error. `fails` is the exit code to expect."""
    return stage("convert", name, *arguments, fails=fails)


def wait_for(true, problem: str, seconds: float = 120) -> None:
    """Wait until `true()` is. Raises TimeoutError that names the problem."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(problem)
        time.sleep(0.2)
