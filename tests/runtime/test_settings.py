"""What a model's folder says of it in kinemake.json: it holds where nothing else is said, and has to be right."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.models import FAMILIES
from stages.runtime.errors import UsageError
from stages.runtime.model import find_model
from stages.runtime.options import resolve

ROOT = Path(__file__).parents[2]
OPTIONS = {"size": "64*32", "frame_num": 5, "steps": 3, "shift": 2.5, "max_sequence_length": 16, "guidance_scale": 1.5}
SETTINGS = {"family": "wan", "variant": "5b", "dtype": "float32", "sizes": ["64*32"], "options": OPTIONS}
VLM = {"family": "vlm", "path": str(ROOT / "models/shapes-internvl")}


@pytest.fixture
def folder(tiny_wan, tmp_path):
    """A model with settings."""
    folder = Path(shutil.copytree(tiny_wan["5b"], tmp_path / "model"))
    (folder / "kinemake.json").write_text(json.dumps(SETTINGS))
    return folder


def say(folder, **changes):
    (folder / "kinemake.json").write_text(json.dumps({**SETTINGS, **changes}))


def found(folder, config=None, name=None):
    model = find_model(name or str(folder), config, FAMILIES)
    return model, resolve(FAMILIES["wan"].options, model.all_options, model.variant)


def items(config):
    """The options of the items that a run makes, by stage."""
    return {job.stage.name: job.items[0].options for job in plan.load(config, 1).jobs}


def declared(folder, model=None, options=None, clip=None, line=None):
    clips = [{"id": "a", "prompt": "a prompt", **(clip or {})}]
    run = {"recipe": "text2video", "model": "mine", "clips": clips, "options": {"seed": 1, **(options or {})}}
    models = {"mine": {"family": "wan", "path": str(folder), **(model or {})}}
    return {"models": models, "runs": {"a": run}, "options": line or {}}


def test_a_folder_alone_is_enough(folder):
    model, values = found(folder)
    assert (model.family, model.variant, model.sizes) == ("wan", "5b", ("64*32",))
    assert {name: values[name] for name in (*OPTIONS, "dtype")} == {**OPTIONS, "dtype": "float32"}


def test_a_folder_without_the_file_is_told_by_its_looks(tiny_wan):
    model, values = found(tiny_wan["14b"])
    assert (model.family, model.variant, model.sizes, values["frame_num"]) == ("wan", "14b", (), 81)


def test_command_line_clip_run_and_config_come_before_it(folder):
    order = [
        ({}, 3),
        ({"model": {"options": {"steps": 4}}}, 4),
        ({"model": {"options": {"steps": 4}}, "options": {"steps": 5}}, 5),
        ({"model": {"options": {"steps": 4}}, "options": {"steps": 5}, "clip": {"steps": 6}}, 6),
        ({"options": {"steps": 5}, "clip": {"steps": 6}, "line": {"steps": 7}}, 7),
    ]
    for said, steps in order:
        assert items(declared(folder, **said))["generate"]["steps"] == steps
    made = items(declared(folder, model={"dtype": "bfloat16"}))
    assert (made["encode"]["dtype"], made["encode"]["size"], made["generate"]["shift"]) == ("bfloat16", "64*32", 2.5)


def test_sizes_of_the_config_come_before_it(folder):
    items(declared(folder, model={"sizes": ["32*32"]}, options={"size": "32*32"}))
    with pytest.raises(UsageError, match=r"size 64\*32 is not one of this model's: choose 32\*32"):
        plan.load(declared(folder, model={"sizes": ["32*32"]}), 1)


def test_by_hand_a_declared_model_has_it_too(folder, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(declared(folder, model={"options": {"steps": 9}})))
    _, values = found(folder, tmp_path / "config.yaml", "mine")
    assert (values["steps"], values["frame_num"], values["dtype"]) == (9, 5, "float32")


def test_it_is_no_part_of_the_weights(folder):
    (vlm := folder.parent / "vlm").mkdir()
    shutil.copytree(VLM["path"], vlm, dirs_exist_ok=True)
    for model_folder, family in ((folder, "wan"), (vlm, "vlm")):
        for patterns in FAMILIES[family].weights.values():
            before = find_model(str(model_folder), None, FAMILIES).digest(patterns)
            (model_folder / "kinemake.json").write_text(json.dumps({"family": family}))
            assert find_model(str(model_folder), None, FAMILIES).digest(patterns) == before


def test_a_file_that_it_names_is_one_of_its_folder(folder):
    say(folder, options={**OPTIONS, "lora": "loras/mine.safetensors"})
    assert found(folder)[1]["lora"] == str(folder / "loras/mine.safetensors")


@pytest.mark.parametrize("name", ["../mine.safetensors", "/etc/passwd", "loras/../../mine.safetensors"])
def test_a_file_elsewhere_is_refused(name, folder):
    say(folder, options={"lora": name})
    with pytest.raises(UsageError, match=r"kinemake.json names '.*' for lora: name a file of the model's folder"):
        found(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trust": True}, "kinemake.json has the unknown key 'trust': known are family, variant, dtype, sizes"),
        ({"options": {"stepps": 3}}, "kinemake.json sets 'stepps', which is no option of family wan: leave it out"),
        ({"options": {"prompt": "x"}}, "kinemake.json sets 'prompt', which is no option of family wan"),
        ({"options": {"steps": 0}}, "kinemake.json: option steps is 0: it must be at least 1"),
        ({"options": {"steps": "many"}}, "kinemake.json: option steps is 'many': it must be of type integer"),
        ({"options": {"steps": [3]}}, r"kinemake.json: option steps is \[3\]: it must be of type integer"),
        ({"options": {"frame_num": 6}}, "kinemake.json: option frame_num is 6: it must be 4n"),
        ({"options": [3]}, r"kinemake.json has \[3\] for options"),
        ({"sizes": "64*32"}, r"kinemake.json has '64\*32' for sizes"),
        ({"sizes": ["wide"]}, r"kinemake.json: size 'wide' is not WIDTH\*HEIGHT: write it"),
        ({"dtype": "float8"}, "kinemake.json has 'float8' for dtype: it must be one of bfloat16"),
        ({"variant": "6b"}, "model .* of family wan has the variant '6b': set variant to one of 14b, 5b"),
    ],
)
def test_what_it_says_wrongly_names_the_file(changes, message, folder):
    say(folder, **changes)
    for ask in (lambda: found(folder), lambda: plan.load(declared(folder), 1)):
        with pytest.raises(UsageError, match=message):
            ask()


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"options": ' + "[" * 5000 + "]" * 5000 + "}"])
def test_what_is_no_table_names_the_file(content, folder):
    (folder / "kinemake.json").write_text(content)
    for ask in (lambda: found(folder), lambda: plan.load(declared(folder), 1)):
        with pytest.raises(UsageError, match="kinemake.json "):
            ask()


def test_another_family_than_declared_is_refused(folder):
    say(folder, family="longlive", options={})
    with pytest.raises(UsageError, match="model mine is declared as family wan: .*kinemake.json says longlive"):
        plan.load(declared(folder), 1)


def test_options_of_recipes_are_held_to_theirs(folder):
    say(folder, recipe={"lines": 3})
    with pytest.raises(UsageError, match="kinemake.json sets 'lines', which is no option of a recipe: leave it out"):
        plan.load(declared(folder), 1)


def test_options_of_recipes_hold_for_them(tiny_sd, tmp_path):
    folder = Path(shutil.copytree(tiny_sd, tmp_path / "model"))
    settings = {"family": "fresco", "options": {"controlnet_type": "canny"}, "recipe": {"size": "192*128"}}
    (folder / "kinemake.json").write_text(json.dumps(settings))
    models = {"mine": {"family": "fresco", "path": str(folder)}}
    run = {"recipe": "fresco", "model": "mine", "clips": [{"video": "a.mp4", "prompt": "x"}], "options": {"seed": 1}}
    assert items({"models": models, "runs": {"a": run}})["extract_frames"]["size"] == "192*128"


@pytest.mark.parametrize("name", [path.name for path in sorted((ROOT / "models").glob("shapes-*"))])
def test_the_shipped_models_say_what_they_need(name):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert set(config["models"][name]) == {"family", "path"}
    model = find_model(str(ROOT / "models" / name), None, FAMILIES)
    assert model.family == config["models"][name]["family"] and model.all_options["dtype"] == "float32"
    FAMILIES[model.family].beyond(model.folder(), resolve(FAMILIES[model.family].options, model.all_options, model.variant))
