"""Limits of a model's architecture are reported when runs are planned, and by encode, with the possible values."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from stages import plan
from stages.runtime.errors import UsageError
from tests.commands import stage

ROOT = Path(__file__).parents[2]


def copy_shipped_model(name, folder):
    """Copy a shipped model without its settings to `folder`."""
    return Path(shutil.copytree(ROOT / "models" / name, folder / name, ignore=shutil.ignore_patterns("kinemake.json")))


def plan_clip(family, path, recipe="text2video", sizes=(), clip=None, model=None, **options):
    models = {"mine": {"family": family, "path": str(path), **({"sizes": list(sizes)} if sizes else {}), **(model or {})}}
    clips = [{"id": "a", "prompt": "a prompt", **(clip or {})}]
    run = {"recipe": recipe, "model": "mine", "clips": clips, "options": {"seed": 1, **options}}
    return plan.load({"models": models, "runs": {"r": run}}, 1)


def test_a_size_beyond_the_rotary_table_is_refused(tmp_path):
    sentence = (
        r"clip a of run r: size is 1280\*704 and the rotary table of the transformer reaches to 1024 pixels \(model mine\)"
    )
    with pytest.raises(UsageError, match=sentence + r": take at most 1024\*1024"):
        plan_clip("wan", copy_shipped_model("shapes-wan-5b", tmp_path), model={"variant": "5b"})


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
def test_sizes_and_frame_counts_beyond_a_model_are_refused_when_planned(family, name, options, sentence, tmp_path):
    recipe = "longlive" if family == "longlive" else "text2video"
    sizes = [options["size"]] if "size" in options else []
    with pytest.raises(UsageError, match=sentence):
        plan_clip(family, copy_shipped_model(name, tmp_path), recipe, sizes, **options)


@pytest.mark.parametrize("options", [{"size": "1024*1024", "frame_num": 253}, {"size": "16*16", "frame_num": 1}])
def test_the_largest_and_smallest_clips_of_a_model_are_planned(options, tmp_path):
    plan_clip("wan", copy_shipped_model("shapes-wan-5b", tmp_path), sizes=[options["size"]], **options)


def test_a_sequence_length_beyond_the_tokenizer_is_refused(tmp_path):
    folder = copy_shipped_model("shapes-wan-5b", tmp_path)
    path = folder / "tokenizer/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 24}))
    plan_clip("wan", folder, sizes=["64*64"], size="64*64", max_sequence_length=24)
    with pytest.raises(UsageError, match=r"max_sequence_length is 25 and the tokenizer takes 24 .*: take at most 24"):
        plan_clip("wan", folder, sizes=["64*64"], size="64*64", max_sequence_length=25)


def test_a_control_type_without_a_controlnet_is_refused(tmp_path):
    clip = {"video": "a.mp4"}
    with pytest.raises(UsageError, match=r"there is no ControlNet for hed \(model mine\): use canny"):
        plan_clip("fresco", copy_shipped_model("shapes-fresco", tmp_path), "fresco", clip=clip)


def test_more_frames_than_the_captioner_has_positions_for_are_refused(tmp_path):
    vlm = {"family": "vlm", "path": str(copy_shipped_model("shapes-internvl", tmp_path))}
    models = {"eye": vlm, "mine": {"family": "wan", "path": str(ROOT / "models/shapes-wan-5b")}}
    run = {"recipe": "v2v", "model": "mine", "captioner": "eye", "clips": [{"id": "a", "video": "a.mp4"}]}
    config = {"models": models, "runs": {"r": {**run, "options": {"seed": 1, "num_segments": 17}}}}
    with pytest.raises(
        UsageError, match=r"17 frames of 16 tokens and 256 new tokens exceed 512 positions.* num_segments to 16"
    ):
        plan.load(config, 1)
    config["runs"]["r"]["options"]["num_segments"] = 16
    plan.load(config, 1)


def test_encode_by_hand_refuses_a_size_beyond_the_model_before_loading(tmp_path):
    folder = copy_shipped_model("shapes-wan-5b", tmp_path)
    Image.new("RGB", (1280, 704)).save(tmp_path / "p.png")
    command = ("encode", tmp_path / "p.png", "-o", tmp_path / "e.safetensors", "-m", folder, "--prompt", "x")
    stderr = stage(*command, fails=1)
    assert (
        "size is 1280*704 and the rotary table of the transformer reaches to 1024 pixels" in stderr
        and '"load"' not in stderr
    )


def test_a_shipped_model_needs_only_its_path_in_the_config():
    planned = plan_clip("wan", ROOT / "models/shapes-wan-5b")
    options = {part.stage.name: part.items[0].options for part in planned.parts}
    assert (options["encode"]["size"], options["encode"]["num_frames"], options["generate"]["num_inference_steps"]) == (
        "64*64",
        17,
        12,
    )


def test_a_clip_with_an_impossible_size_does_not_stop_the_plan(tmp_path):
    sizes = ["64*64", "72*64"]
    plan_clip("wan", copy_shipped_model("shapes-wan-5b", tmp_path), sizes=sizes, clip={"size": "72*64"}, size="64*64")
