"""What the architecture of a model rules out is told when runs are planned, and by encode, with what it can do."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from stages import plan
from stages.runtime.errors import UsageError
from tests.commands import stage

ROOT = Path(__file__).parents[2]


def shipped(name, folder):
    """A shipped model without its settings."""
    return Path(shutil.copytree(ROOT / "models" / name, folder / name, ignore=shutil.ignore_patterns("kinemake.json")))


def planned(family, path, recipe="text2video", sizes=(), clip=None, model=None, **options):
    models = {"mine": {"family": family, "path": str(path), **({"sizes": list(sizes)} if sizes else {}), **(model or {})}}
    clips = [{"id": "a", "prompt": "a prompt", **(clip or {})}]
    run = {"recipe": recipe, "model": "mine", "clips": clips, "options": {"seed": 1, **options}}
    return plan.load({"models": models, "runs": {"r": run}}, 1)


def test_the_published_size_is_too_large_for_a_small_rotary_table(tmp_path):
    sentence = (
        r"clip a of run r: size is 1280\*704 and the rotary table of the transformer reaches to 1024 pixels \(model mine\)"
    )
    with pytest.raises(UsageError, match=sentence + r": take at most 1024\*1024"):
        planned("wan", shipped("shapes-wan-5b", tmp_path), model={"variant": "5b"})


@pytest.mark.parametrize(
    ("family", "name", "options", "sentence"),
    [
        (
            "wan",
            "shapes-wan-5b",
            {"size": "72*64"},
            r"size is 72\*64 and both sides have to be multiples of 16 .*: take 64\*64",
        ),
        ("wan", "shapes-wan-5b", {"size": "64*1040"}, r"reaches to 1024 pixels .*: take at most 1024\*1024"),
        ("wan", "shapes-wan-5b", {"size": "64*64", "frame_num": 257}, r"257 frames .* reaches to 253 .*: take at most 253"),
        ("longlive", "shapes-longlive", {"size": "64*72", "num_output_frames": 15}, r"multiples of 16 .*: take 64\*64"),
        ("text2video", "shapes-text2video", {"num_frames": 5}, "num_frames is 5 .*: it has to be a multiple of 2"),
        ("text2video", "shapes-text2video", {"frame_size": 36}, "frame_size is 36 .*: it has to be a multiple of 8"),
    ],
)
def test_what_cannot_be_made_is_told_when_it_is_planned(family, name, options, sentence, tmp_path):
    recipe = "longlive" if family == "longlive" else "text2video"
    sizes = [options["size"]] if "size" in options else []
    with pytest.raises(UsageError, match=sentence):
        planned(family, shipped(name, tmp_path), recipe, sizes, **options)


@pytest.mark.parametrize("options", [{"size": "1024*1024", "frame_num": 253}, {"size": "16*16", "frame_num": 1}])
def test_the_largest_and_the_smallest_are_planned(options, tmp_path):
    planned("wan", shipped("shapes-wan-5b", tmp_path), sizes=[options["size"]], **options)


def test_a_text_that_the_tokenizer_does_not_take_is_told(tmp_path):
    folder = shipped("shapes-wan-5b", tmp_path)
    path = folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 24}))
    planned("wan", folder, sizes=["64*64"], size="64*64", max_sequence_length=24)
    with pytest.raises(UsageError, match=r"max_sequence_length is 25 and the tokenizer takes 24 .*: take at most 24"):
        planned("wan", folder, sizes=["64*64"], size="64*64", max_sequence_length=25)


def test_a_control_without_a_network_is_told(tmp_path):
    clip = {"video": "a.mp4"}
    with pytest.raises(UsageError, match=r"there is no ControlNet for hed \(model mine\): choose canny"):
        planned("fresco", shipped("shapes-fresco", tmp_path), "fresco", clip=clip)


def test_more_frames_than_a_captioner_has_positions_for_are_told(tmp_path):
    vlm = {"family": "vlm", "path": str(shipped("shapes-internvl", tmp_path))}
    models = {"eye": vlm, "mine": {"family": "wan", "path": str(ROOT / "models/shapes-wan-5b")}}
    run = {"recipe": "v2v", "model": "mine", "captioner": "eye", "clips": [{"id": "a", "video": "a.mp4"}]}
    config = {"models": models, "runs": {"r": {**run, "options": {"seed": 1, "num_segments": 17}}}}
    with pytest.raises(
        UsageError, match=r"17 frames of 16 tokens and 256 new tokens are more than its 512 .* num_segments to 16"
    ):
        plan.load(config, 1)
    config["runs"]["r"]["options"]["num_segments"] = 16
    plan.load(config, 1)


def test_by_hand_encode_tells_it_before_anything_is_loaded(tmp_path):
    folder = shipped("shapes-wan-5b", tmp_path)
    Image.new("RGB", (1280, 704)).save(tmp_path / "p.png")
    command = ("encode", tmp_path / "p.png", "-o", tmp_path / "e.safetensors", "-m", folder, "--prompt", "x")
    said = stage(*command, fails=1)
    assert "size is 1280*704 and the rotary table of the transformer reaches to 1024 pixels" in said and '"load"' not in said


def test_a_shipped_model_is_declared_by_its_path_alone():
    made = planned("wan", ROOT / "models/shapes-wan-5b")
    options = {job.stage.name: job.items[0].options for job in made.jobs}
    assert (options["encode"]["size"], options["encode"]["frame_num"], options["generate"]["steps"]) == ("64*64", 17, 12)


def test_a_clip_of_its_own_size_does_not_end_the_plan_of_the_others(tmp_path):
    sizes = ["64*64", "72*64"]
    planned("wan", shipped("shapes-wan-5b", tmp_path), sizes=sizes, clip={"size": "72*64"}, size="64*64")
