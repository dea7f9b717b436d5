"""The command lines of the stages: what needs no heavy library, and the messages of usage errors."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stages.runtime.stages import STAGES
from tests import zoo
from tests.commands import stage

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "av", "cv2", "numpy")


@pytest.mark.parametrize("name", STAGES)
def test_stage_help_imports_no_heavy_library(name):
    code = (
        f"import sys; from click.testing import CliRunner; from stages.{name} import main\n"
        f"assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_without_arguments_shows_its_help(name):
    command = importlib.import_module(f"stages.{name}").main
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 2 and "Usage:" in result.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("encode", ["a.png"], "error: no output is given: add --output FILE"),
        ("decode", ["--output", "x.json"], "error: no latents is given"),
        ("encode", ["a.png", "--output", "x.json"], "output x.json does not end with .safetensors"),
        ("encode", ["a.png", "--output", "x.safetensors"], "error: no model is given"),
        ("encode", ["a.png", "--output", "x.safetensors", "--model", "nothing"], "model nothing is no folder, no Hub id"),
        ("encode", ["a.png", "--output", "x.safetensors", "--frame-num", "many"], "'many' is not a valid integer"),
        ("extract_frames", ["a.mp4", "--output", "x.json", "--select", "some"], "'some' is not one of 'last'"),
        ("encode", ["a.png", "--output", "x.safetensors", "--device", "gpu"], "'gpu' is not auto, cpu, cuda or cuda:NUMBER"),
        ("extract_frames", ["--manifest", "missing.jsonl"], "'missing.jsonl' does not exist"),
    ],
)
def test_a_usage_error_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, name, arguments, message):
    monkeypatch.chdir(tmp_path)
    stderr = stage(name, *arguments, fails=2)
    assert message in stderr and "Traceback" not in stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1 of .* is not JSON"),
        ('{"video": "a.mp4"}', "line 1 of .* has no output"),
        ('{"output": "x.json"}', "line 1 of .* has no video"),
        ('{"video": 3, "output": "x.json"}', "video of line 1 of .* is 3: it must be a path"),
        ('{"video": "a.mp4", "output": "x.json", "sizze": "1*1"}', "option sizze is not one of extract_frames"),
        ('{"video": "a.mp4", "output": "x.json", "count": 0}', "option count is 0: it must be at least 1"),
        ('{"video": "a", "output": "x.json"}\n{"video": "b", "output": "x.json"}', "makes x.json twice"),
    ],
)
def test_an_invalid_manifest_line_is_named(tmp_path, line, message):
    manifest = tmp_path / "shard.jsonl"
    manifest.write_text(line)
    assert re.search(message, stage("extract_frames", "--manifest", manifest, fails=2))


def test_options_beside_a_manifest_are_refused(tmp_path):
    manifest = tmp_path / "shard.jsonl"
    manifest.write_text('{"video": "a.mp4", "output": "x.json"}')
    stderr = stage("extract_frames", "--manifest", manifest, "--size", "96*64", fails=2)
    assert "size is given beside --manifest: write it into the manifest's lines" in stderr


def test_a_config_that_is_not_yaml_is_one_sentence(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("models: {a: ")
    arguments = ("a.png", "--output", tmp_path / "x.safetensors", "--model", "a", "--config", config)
    assert f"line 2 of {config} is not YAML" in stage("encode", *arguments, fails=2)


def test_an_unwritable_output_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    stderr = stage("extract_frames", "a.mp4", "--output", tmp_path / "file" / "x.json", fails=1)
    assert "cannot be written" in stderr and "Traceback" not in stderr


@pytest.mark.parametrize("mark_failed", [(), ("--mark-failed",)], ids=["", "marked"])
@pytest.mark.parametrize("first", ["file/x.json", "link/x.json", f"{'long' * 70}.json", f"{'long' * 80}/x.json"])
@pytest.mark.parametrize("stored", [False, True])
def test_an_unwritable_output_of_a_manifest_fails_alone(tmp_path, first, mark_failed, stored):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    video = zoo.plain(tmp_path)
    rows = [{"id": name, "video": str(video), "output": str(tmp_path / name)} for name in (first, "good.json")]
    manifest = tmp_path / "shard.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stderr = stage(
        *("extract_frames", "--manifest", manifest, *mark_failed, *(("--store", tmp_path / "store") if stored else ())),
        fails=1,
    )
    assert re.search(r"error: 1 of 2 items failed, the first is .*cannot be written", stderr.splitlines()[-1]), stderr
    assert "Traceback" not in stderr and "bug of Kinemake" not in stderr
    assert json.loads((tmp_path / "good.json").read_text())["kinemake.kind"] == "frames"
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_a_failed_item_by_hand_is_exit_code_1_and_writes_nothing(tmp_path):
    stderr = stage("extract_frames", tmp_path / "none.mp4", "--output", tmp_path / "x.json", fails=1)
    assert stderr.splitlines()[-1] == f"error: {tmp_path / 'none.mp4'} does not exist: mend the path, or its permissions"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_item_is_marked_only_with_mark_failed(tmp_path):
    manifest = tmp_path / "shard.jsonl"
    manifest.write_text(json.dumps({"id": "a", "video": "none.mp4", "output": str(tmp_path / "x.json")}))
    stderr = stage("extract_frames", "--manifest", manifest, fails=1)
    assert "error: 1 of 1 items failed" in stderr or "none.mp4 does not exist" in stderr
    assert not (tmp_path / "x.json").exists()
    stage("extract_frames", "--manifest", manifest, "--mark-failed")
    assert json.loads((tmp_path / "x.json").read_text())["kinemake.kind"] == "failed"


def test_debug_shows_the_traceback(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "stages.extract_frames", "none.mp4", "--output", str(tmp_path / "x.json"), "--debug"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "Traceback" in process.stderr
