"""The command line of `train`: its help, and the messages of usage errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from stages.train import main
from tests.commands import train
from tests.conftest import TINY_TEXT2VIDEO

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "av", "cv2", "numpy")
TRAININGS = ["text2video", "wan-vae", "wan", "captioner"]


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in TRAININGS)], ids=" ".join)
def test_train_help_imports_no_heavy_library(arguments):
    code = (
        f"import sys; from click.testing import CliRunner; from stages.train import main\n"
        f"assert CliRunner().invoke(main, {arguments!r}).exit_code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "[]", process.stderr


def test_train_help_lists_the_trainings():
    stderr = CliRunner().invoke(main, ["--help"]).stdout
    assert all(f"  {name} " in stderr for name in TRAININGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 4", "has the unknown key 'batchsize': known are architecture, augment, batch_size, "),
        ("training: captioner", "is for train captioner: run train captioner --config"),
        ("batch_size: 0", "option batch_size is 0: it must be at least 1"),
        ("batch_size: many", "option batch_size is 'many': it must be a whole number"),
        ("prediction_type: noise", "option prediction_type is 'noise': it must be one of epsilon, v_prediction, sample"),
        ("- 4", "is no table of names and values: write lines such as batch_size: 4"),
        ("architecture: small", "is no table of names and values: write lines such as batch_size: 4"),
        ("a: {b: ", "is not YAML ("),
        ("architecture: &a {b: *a}", "has a list or table that contains itself: remove the anchor"),
        ("batch_size: 2\nbatch_size: 3", "the key 'batch_size' stands twice"),
        ("learning_rate: .nan", "option learning_rate is nan: it must be a finite number"),
        ("num_frames: 1000000000", "option num_frames is 1000000000: it must be at most 4096"),
        ("text_encoder: 7", 'option text_encoder is 7: it must be text: write it in quotes, such as "7"'),
        ("batch_size: 2", "error: no data is given: add --data FOLDER (with videos/ and captions/), or --data shapes"),
        ("data: nowhere", "error: nowhere has no video in videos/ with a caption of the same stem in captions/"),
        ("data: shapes\nstart_from: nowhere", "error: nowhere has no unet/: give --start-from a model of train text2video"),
        (
            "data: shapes\ntext_encoder: no/encoder",
            "error: the text encoder no/encoder is not on this machine: fetch it once",
        ),
    ],
)
def test_an_invalid_training_config_is_one_sentence_and_exit_code_2(text, message, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    assert_refused("--config", tmp_path / "config.yaml", message=message, folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 5}, "error: num_frames is 5: this architecture needs a multiple of 2"),
        ({"frame_size": 18}, "error: frame_size is 18: this architecture needs a multiple of 4"),
        ({"architecture": {**TINY_TEXT2VIDEO["architecture"], "unet": {"width": 8}}}, "error: the architecture makes no mo"),
        ({"architecture": {"text_encoder": {}}}, "error: the architecture makes no model ('max_position_embeddings' is mis"),
        ({"mixed_precision": "fp16"}, "error: mixed_precision is fp16 and this training runs on the CPU: use no or bf16"),
    ],
)
def test_an_impossible_training_is_one_sentence_and_exit_code_2(change, message, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**TINY_TEXT2VIDEO, **change}))
    assert_refused("--config", tmp_path / "config.yaml", message=message, folder=tmp_path)


def assert_refused(*arguments, message, folder):
    stderr = train("text2video", *arguments, "--output", folder / "t", fails=2)
    lines = [line for line in stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1 and message in lines[0], stderr
    assert not (folder / "t").exists()


def test_train_command_line_overrides_the_config(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**TINY_TEXT2VIDEO, "num_frames": 8}))
    arguments = ("--config", tmp_path / "config.yaml", "--num-frames", 7, "--output", tmp_path / "t")
    assert "num_frames is 7" in train("text2video", *arguments, fails=2)


def test_train_without_a_config_shows_its_help():
    result = CliRunner().invoke(main, ["text2video"])
    assert result.exit_code == 2 and "Usage:" in result.stderr and "--prediction-type" in result.stderr
