"""kinemake.json in a model's folder: its settings apply unless something else overrides them, and they must be valid."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.families import FAMILIES
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from stages.runtime.options import resolve

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "size": "64*32",
    "num_frames": 5,
    "num_inference_steps": 3,
    "shift": 2.5,
    "max_sequence_length": 16,
    "guidance_scale": 1.5,
}
SETTINGS = {"family": "wan", "variant": "5b", "dtype": "float32", "sizes": ["64*32"], "options": OPTIONS}
VLM = {"family": "vlm", "path": str(ROOT / "models/shapes-internvl")}


@pytest.fixture
def folder(tiny_wan, tmp_path):
    """The folder of a model with settings."""
    folder = Path(shutil.copytree(tiny_wan["5b"], tmp_path / "model"))
    (folder / "kinemake.json").write_text(json.dumps(SETTINGS))
    return folder


def write_settings(folder, **changes):
    (folder / "kinemake.json").write_text(json.dumps({**SETTINGS, **changes}))


def resolve_model(folder, config=None, name=None):
    model = find_model(name or str(folder), config, FAMILIES)
    return model, resolve(FAMILIES["wan"].options, model.all_options, model.variant)


def item_options(config):
    """The options of the first item of each stage of a run, by stage."""
    return {part.stage.name: part.items[0].options for part in plan.load(config, 1).parts}


def make_config(folder, model=None, options=None, clip=None, line=None):
    clips = [{"id": "a", "prompt": "a prompt", **(clip or {})}]
    run = {"recipe": "text2video", "model": "mine", "clips": clips, "options": {"seed": 1, **(options or {})}}
    models = {"mine": {"family": "wan", "path": str(folder), **(model or {})}}
    return {"models": models, "runs": {"a": run}, "options": line or {}}


def test_settings_of_a_model_folder_apply_without_a_config(folder):
    model, values = resolve_model(folder)
    assert (model.family, model.variant, model.sizes) == ("wan", "5b", ("64*32",))
    assert {name: values[name] for name in (*OPTIONS, "dtype")} == {**OPTIONS, "dtype": "float32"}


def test_a_model_folder_without_settings_is_detected_by_its_files(tiny_wan):
    model, values = resolve_model(tiny_wan["14b"])
    assert (model.family, model.variant, model.sizes, values["num_frames"]) == ("wan", "14b", (), 81)


def test_command_line_clip_run_and_config_override_the_settings(folder):
    order = [
        ({}, 3),
        ({"model": {"options": {"steps": 4}}}, 4),
        ({"model": {"options": {"steps": 4}}, "options": {"steps": 5}}, 5),
        ({"model": {"options": {"steps": 4}}, "options": {"steps": 5}, "clip": {"steps": 6}}, 6),
        ({"options": {"steps": 5}, "clip": {"steps": 6}, "line": {"steps": 7}}, 7),
    ]
    for changes, steps in order:
        assert item_options(make_config(folder, **changes))["generate"]["num_inference_steps"] == steps
    stages = item_options(make_config(folder, model={"dtype": "bfloat16"}))
    assert (stages["encode"]["dtype"], stages["encode"]["size"], stages["generate"]["shift"]) == ("bfloat16", "64*32", 2.5)


def test_sizes_of_the_config_override_the_settings(folder):
    item_options(make_config(folder, model={"sizes": ["32*32"]}, options={"size": "32*32"}))
    with pytest.raises(UsageError, match=r"size 64\*32 is not one of this model's: choose 32\*32"):
        plan.load(make_config(folder, model={"sizes": ["32*32"]}), 1)


def test_settings_apply_to_a_declared_model_by_hand(folder, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(make_config(folder, model={"options": {"steps": 9}})))
    _, values = resolve_model(folder, tmp_path / "config.yaml", "mine")
    assert (values["num_inference_steps"], values["num_frames"], values["dtype"]) == (9, 5, "float32")


def test_settings_do_not_change_the_digest_of_the_weights(folder):
    (vlm := folder.parent / "vlm").mkdir()
    shutil.copytree(VLM["path"], vlm, dirs_exist_ok=True)
    for model_folder, family in ((folder, "wan"), (vlm, "vlm")):
        for patterns in (implementation.weights for implementation in FAMILIES[family].stages.values()):
            before = find_model(str(model_folder), None, FAMILIES).digest(patterns)
            (model_folder / "kinemake.json").write_text(json.dumps({"family": family}))
            assert find_model(str(model_folder), None, FAMILIES).digest(patterns) == before


def test_a_file_named_by_the_settings_lies_in_the_model_folder(folder):
    write_settings(folder, options={**OPTIONS, "lora": "loras/mine.safetensors"})
    assert resolve_model(folder)[1]["lora"] == [str(folder / "loras/mine.safetensors")]
    write_settings(folder, options={**OPTIONS, "lora": ["mine.safetensors", "style.safetensors"]})
    assert resolve_model(folder)[1]["lora"] == [str(folder / "mine.safetensors"), str(folder / "style.safetensors")]


@pytest.mark.parametrize("name", ["../mine.safetensors", "/etc/passwd", "loras/../../mine.safetensors", ["a", "../b"]])
def test_settings_that_name_a_file_outside_the_folder_are_refused(name, folder):
    write_settings(folder, options={"lora": name})
    with pytest.raises(UsageError, match=r"kinemake.json names '.*' for lora: name a file of the model's folder"):
        resolve_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trust": True}, "kinemake.json has the unknown key 'trust': known are family, variant, dtype, sizes"),
        ({"options": {"stepps": 3}}, "kinemake.json sets 'stepps', which is no option of family wan: leave it out"),
        ({"options": {"prompt": "x"}}, "kinemake.json sets 'prompt', which is no option of family wan"),
        ({"options": {"steps": 0}}, "kinemake.json: option num_inference_steps is 0: it must be at least 1"),
        ({"options": {"steps": "many"}}, "kinemake.json: option num_inference_steps is 'many': it must be a whole number"),
        ({"options": {"steps": [3]}}, r"kinemake.json: option num_inference_steps is \[3\]: it must be a whole number"),
        ({"options": {"frame_num": 6}}, "kinemake.json: option num_frames is 6: it must be 4n"),
        ({"options": [3]}, r"kinemake.json has \[3\] for options"),
        ({"sizes": "64*32"}, r"kinemake.json has '64\*32' for sizes"),
        ({"sizes": ["wide"]}, r"kinemake.json: size 'wide' is not WIDTH\*HEIGHT: write it"),
        ({"dtype": "float8"}, "kinemake.json has 'float8' for dtype: it must be one of bfloat16"),
        ({"variant": "6b"}, "model .* of family wan has the variant '6b': set variant to one of 14b, 5b"),
    ],
)
def test_an_invalid_value_in_the_settings_names_the_file(changes, message, folder):
    write_settings(folder, **changes)
    for call in (lambda: resolve_model(folder), lambda: plan.load(make_config(folder), 1)):
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"options": ' + "[" * 5000 + "]" * 5000 + "}"])
def test_settings_that_are_no_table_name_the_file(content, folder):
    (folder / "kinemake.json").write_text(content)
    for call in (lambda: resolve_model(folder), lambda: plan.load(make_config(folder), 1)):
        with pytest.raises(UsageError, match="kinemake.json "):
            call()


def test_settings_of_another_family_than_declared_are_refused(folder):
    write_settings(folder, family="longlive", options={})
    with pytest.raises(UsageError, match="model mine is declared as family wan: .*kinemake.json says longlive"):
        plan.load(make_config(folder), 1)


def test_an_unknown_recipe_option_in_the_settings_is_refused(folder):
    write_settings(folder, recipe={"lines": 3})
    with pytest.raises(UsageError, match="kinemake.json sets 'lines', which is no option of a recipe: leave it out"):
        plan.load(make_config(folder), 1)


def test_recipe_options_of_the_settings_apply(tiny_sd, tmp_path):
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
    settings = {"family": "fresco", "options": {"controlnet_type": "canny"}, "recipe": {"size": "192*128"}}
    (folder / "kinemake.json").write_text(json.dumps(settings))
    models = {"mine": {"family": "fresco", "path": str(folder)}}
    run = {"recipe": "fresco", "model": "mine", "clips": [{"video": "a.mp4", "prompt": "x"}], "options": {"seed": 1}}
    assert item_options({"models": models, "runs": {"a": run}})["extract_frames"]["size"] == "192*128"


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "models").glob("shapes-*"))])
def test_shipped_models_need_only_family_and_path_in_the_config(name):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert set(config["models"][name]) == {"family", "path"}
    model = find_model(str(ROOT / "models" / name), None, FAMILIES)
    assert model.family == config["models"][name]["family"] and model.all_options["dtype"] == "float32"
    family = FAMILIES[model.family]
    assert family.model_fault(model.folder(), resolve(family.options, model.all_options, model.variant)) is None
