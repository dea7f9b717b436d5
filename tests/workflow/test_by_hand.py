"""Each stage by hand, in an empty folder, on a real clip and models that no config declares."""

import pytest

from tests import zoo
from tests.workflow.conftest import Project, frame_count

CPU = ("--device", "cpu", "--threads", 1)


@pytest.fixture
def folder(tmp_path, models):
    return Project(tmp_path / "empty", models)


def test_six_stages_by_hand_make_a_film(folder, models):
    clip, wan, captioner = zoo.real_clip("car-turn.mp4"), models["one-expert"]["path"], models["eye"]["path"]
    size = ("--size", "32*32")
    folder.run(clip, "-o", "frames.json", *size, program="extract_frames")
    folder.run(clip, "-o", "caption.json", "-m", captioner, "--max-new-tokens", 4, *CPU, program="caption_vlm")
    options = ("-o", "encoded.safetensors", "-m", wan, "--frame-num", 5)
    folder.run("frames.json", "--caption", "caption.json", *options, *CPU, program="encode")
    folder.run("encoded.safetensors", "-o", "latents.safetensors", "--steps", 2, *CPU, program="generate")
    folder.run("latents.safetensors", "-o", "clip.json", "--lossless", *CPU, program="decode")
    folder.run("clip.json", "--source", clip, "-o", "film.mp4", program="concat")
    # 80 frames at 10 per second are 192 at 24
    assert frame_count(folder.path("film.mp4")) == 192 + 4
    assert not list(folder.folder.glob(".kinemake-*"))


def test_a_failed_item_by_hand_is_one_sentence_and_exit_code_1(folder):
    zoo.no_index(folder.folder)
    report = folder.run("cut_plain.mp4", "-o", "frames.json", program="extract_frames", fails=1)
    sentences = [line for line in report.splitlines() if not line.startswith("{")]
    assert len(sentences) == 1 and sentences[0].startswith("error: cut_plain.mp4 is not a readable video")
    assert not folder.path("frames.json").exists()


@pytest.mark.parametrize(
    ("program", "arguments", "sentence"),
    [
        ("extract_frames", ["a.mp4"], "error: no output is given: add --output FILE"),
        ("extract_frames", ["a.mp4", "-o", "a.txt"], "error: output a.txt does not end with .json"),
        ("generate", ["a.safetensors", "-o", "b.safetensors", "--stepz", "3"], "No such option"),
        ("encode", ["a.png", "-o", "b.safetensors"], "error: no model is given: add --model NAME, FOLDER or HUB_ID"),
    ],
)
def test_a_usage_error_by_hand_is_one_sentence_and_exit_code_2(folder, program, arguments, sentence):
    report = folder.run(*arguments, program=program, fails=2)
    assert sentence in report and "Traceback" not in report
    assert folder.files() == {}
