"""The schema says one sentence per mistake, and takes every config of the project."""

from pathlib import Path

import pytest
import yaml

from stages.plan import schema
from stages.runtime.errors import UsageError

ROOT = Path(__file__).parents[2]


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
def test_one_sentence_names_the_key_and_the_remedy(config, keys, value, message):
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(UsageError) as caught:
        schema.check(config, "config", "config")
    assert message in str(caught.value)


def test_a_clip_without_an_id_is_told_what_that_is():
    with pytest.raises(UsageError, match="clip 1 lacks the key id: Name of the clip"):
        schema.check({"video": "a.mp4"}, "clip", "clip 1")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_of_the_project_is_valid(path):
    """An example lies over the project's config, as --configfile does it."""
    base = yaml.safe_load((ROOT / "config.yaml").read_text())
    schema.check(base, "config", "config.yaml")
    schema.check({**base, **yaml.safe_load(path.read_text())}, "config", path.name)
