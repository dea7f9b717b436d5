"""Running commands as a user does, and reading their logs."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner


def stage(name: str, *arguments, fails: int = 0) -> str:
    """Run a stage's command in this process and return its standard error. `fails` is the expected exit code."""
    command = importlib.import_module(f"stages.{name}").main
    if name in ("caption_vlm", "encode", "generate", "decode") and "--device" not in arguments:
        arguments = (*arguments, "--device", "cpu", "--threads", "1")
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.stderr or result.exception
    return result.stderr


def stage_manifest(name: str, folder: Path, rows: list[dict[str, Any]], *arguments) -> str:
    """Run a stage over a manifest that is written to `folder`, and return its standard error."""
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return stage(name, "--manifest", manifest, *arguments)


def train(name: str, *arguments, fails: int = 0) -> str:
    """Run a training's command in this process and return its standard error. `fails` is the expected exit code."""
    command = importlib.import_module("stages.train").main
    arguments = [name, *arguments, "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.stderr or result.exception
    return result.stderr


def train_model(name: str, folder: Path, config: dict, *arguments, fails: int = 0):
    """Run a training with a config file in `folder` and return its model's folder, or its standard error if it fails."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    stderr = train(name, "--config", folder / "config.yaml", "--output", folder / "training", *arguments, fails=fails)
    return stderr if fails else folder / "training" / "model"


def convert(name: str, *arguments, fails: int = 0) -> str:
    """Run a conversion's command in this process and return its standard error. `fails` is the expected exit code."""
    return stage("convert", name, *arguments, fails=fails)


def imported_libraries(name: str, arguments: list[str], libraries: tuple[str, ...]) -> list[str]:
    """The libraries that a new process has imported after a command that ends at once, by --help or a usage error."""
    code = f"""
import json, sys
from stages.{name} import main
try:
    main({arguments!r})
except SystemExit as ended:
    assert ended.code in (0, 2), ended.code
print(json.dumps([name for name in {libraries!r} if name in sys.modules]))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def events(stderr: str) -> list[dict[str, Any]]:
    """The events that a command logged: the lines of its standard error that are JSON."""
    return [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


def wait_for(condition, problem: str, seconds: float = 120) -> None:
    """Wait until `condition()` is true. Raises TimeoutError that names the problem."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(problem)
        time.sleep(0.2)
