"""The schema reports each mistake in one sentence, and accepts every config of the project."""

import math
from pathlib import Path

import pytest
import yaml

from stages.plan import schema
from stages.runtime.errors import UsageError

ROOT = Path(__file__).parents[2]


def set_value(config, keys, value):
    for key in keys[:-1]:
        config = config[key]
    config[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["rnus"], {}, "config has the unknown key 'rnus': did you mean runs?"),
        (
            ["runs", "demo", "recipe"],
            "v3v",
            "config.runs.demo.recipe is 'v3v': it must be one of chain, ",
        ),
        (
            ["runs", "demo", "options", "stesp"],
            3,
            "config.runs.demo.options has the unknown key 'stesp': did you mean steps?",
        ),
        (["models", "big", "hub"], "a/b", "config.models.big has both path and hub: it must have one of them"),
        (["models", "big", "family"], "vae", "config.models.big.family is 'vae': it must be one of"),
        (
            ["runs", "demo", "clips"],
            {"videos": "v", "promts": "p"},
            "config.runs.demo.clips has the unknown key 'promts': did you mean prompts?",
        ),
        (["runs", "demo", "name"], "{clip}.avi", "config.runs.demo.name is '{clip}.avi': it must end with .mp4"),
        (["runs", "store"], {"recipe": "v2v", "clips": []}, "store"),
        (["results"], "", "config.results is '': it must not be empty"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, list) else "",
)
def test_check_names_the_key_and_the_remedy_in_one_sentence(config, keys, value, message):
    set_value(config, keys, value)
    with pytest.raises(UsageError) as caught:
        schema.check(config, "config", "config")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["options"], {"steps": 0}, "config.options.steps is 0: it must be at least 1"),
        (["options"], {"frame_num": 10**10}, "config.options.frame_num is 10000000000: it must be at most"),
        (["options"], {"guidance_scale": math.nan}, "config.options.guidance_scale is nan: it must be a number"),
        (["options"], {"guidance_scale": -math.inf}, "config.options.guidance_scale is -inf: it must be a number"),
        (["options"], {"steps": [3]}, "config.options.steps is [3]: it must be a whole number"),
        (["options"], {"steps": 2.5}, "config.options.steps is 2.5: it must be a whole number"),
        (["options"], {"save_gif": 1}, "config.options.save_gif is 1: it must be true or false"),
        (["options"], {"engine": "magic"}, "config.options.engine is 'magic': it must be one of auto, "),
        (["options"], {"patch_size": 4}, "config.options.patch_size is 4: it must be one of 3, 5, 7"),
        (
            ["options"],
            {"denoising_step_list": [1000, 0]},
            "config.options.denoising_step_list.1 is 0: it must be at least 1",
        ),
        (["options"], {"prefix": 7}, 'config.options.prefix is 7: it must be text: write it in quotes, such as "7"'),
        (["options"], {"negative_prompt": False}, 'it must be text: write it in quotes, such as "no"'),
        (["options"], {7: 7}, "config.options has the unknown key 7"),
        (["runs", "demo", "clips"], 7, "config.runs.demo.clips is 7: it must be a list or text or a table"),
        (["runs", "demo", "clips"], [], "config.runs.demo.clips is []: it must not be empty"),
        (["runs", "demo", "clips"], ["a.mp4"], "config.runs.demo.clips.0 is 'a.mp4': it must be a table of keys and values"),
        (["runs", "demo", "clips"], {"prompts": "p"}, "config.runs.demo.clips has neither videos nor images"),
        (["runs", "demo", "clips"], {"videos": "a", "images": "b"}, "config.runs.demo.clips has both videos and images"),
        (["runs", "demo", "clips"], {"videos": 7}, "config.runs.demo.clips.videos is 7: it must be text"),
        (["runs", "demo"], [], "config.runs.demo is []: it must be a table of keys and values"),
        (["again"], "all", "config.again is 'all': write it as a list: [all]"),
        (
            ["models", "small", "hub"],
            "nothing",
            "config.models.small.hub is 'nothing': an id on the model hub is OWNER/NAME",
        ),
        (["models", "big", "variant"], 256, 'config.models.big.variant is the number 256: write it in quotes: "256"'),
        (["resources"], {"generate": {"mem_mb": 0}}, "config.resources.generate.mem_mb is 0: it must be at least 1"),
        (["steps"], 2, "config has the unknown key 'steps': it is an option: write --config 'options={steps: 2}'"),
        (["seed"], 4, "config has the unknown key 'seed': it is an option: write --config 'options={seed: 4}'"),
        (["size"], "64*64", "it is an option: write --config 'options={size: 64*64}'"),
        (["model"], "big", "it is a key of a run: write --config 'runs={demo: {model: big}}'"),
        (["runs"], None, "config.runs is None: it must be a table of keys and values"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, list) else "",
)
def test_check_states_the_rule_for_an_invalid_value(config, keys, value, message):
    set_value(config, keys, value)
    with pytest.raises(UsageError) as caught:
        schema.check(config, "config", "config")
    assert message in str(caught.value) and len(str(caught.value)) < 500


def test_blank_cells_are_left_out_except_for_text_options():
    assert schema.is_left_out("steps", " ") and schema.is_left_out("save_gif", "")
    assert not schema.is_left_out("negative_prompt", "") and not schema.is_left_out("steps", "3")


def test_check_describes_the_missing_id_of_a_clip():
    with pytest.raises(UsageError, match="clip 1 lacks the key id: add it: name of the clip"):
        schema.check({"video": "a.mp4"}, "clip", "clip 1")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_check_accepts_every_config_of_the_project(path):
    """An example is merged over the project's config, as --configfile does."""
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    schema.check(base, "config", "config.yaml")
    schema.check({**base, **yaml.safe_load(path.read_text())}, "config", path.name)


def test_unknown_keys_of_several_tables_are_named_at_once(config):
    run = config["runs"]["demo"]
    run |= {"captoner": "eye", "options": {**run["options"], "stepz": 3}}
    with pytest.raises(UsageError) as raised:
        schema.check(config, "config", "config")
    assert "config.runs.demo has the unknown key 'captoner' (did you mean captioner?)" in raised.value.reason
    assert "config.runs.demo.options has the unknown key 'stepz'" in raised.value.reason
