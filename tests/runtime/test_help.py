"""Help of a command with the options of several families: each option as its own family declares it."""

import re

import pytest
from click.testing import CliRunner

from stages.families import FAMILIES
from stages.runtime.cli import stage_command
from stages.runtime.options import Family, Implementation, Options, option
from stages.runtime.stages import STAGES


class Ours(Options):
    sampler: str = option("euler", "How Ours steps", choices=("euler", "heun"))
    strength: float = option(1.0, "Of Ours", minimum=0)
    only_ours: int = option(3, "Nobody else's")


class Theirs(Options):
    sampler: str = option("ddpm", "How Theirs steps", choices=("ddpm", "ddim"))
    offload: str = option("by_block", "What Theirs offloads", choices=("by_block", "by_layer"))
    strength: int = option(5, "Of Theirs", maximum=9)


def family(name: str, options: type[Options]) -> Family:
    return Family(name, 1, {"generate": Implementation("tests.runtime.toys:Toy", options, needs_model=lambda values: False)})


@pytest.fixture
def command():
    return stage_command(STAGES["generate"], {"ours": family("ours", Ours), "theirs": family("theirs", Theirs)})


def help_sections(command) -> dict[str, str]:
    """The help text of a command by heading, each on a single line."""
    text = CliRunner().invoke(command, ["--help"]).output
    headings = re.split(r"^(Options.*):$", text, flags=re.M)[1:]
    return {heading: " ".join(body.split()) for heading, body in zip(headings[::2], headings[1::2], strict=True)}


def test_help_shows_the_texts_choices_and_defaults_of_each_family(command):
    help_text = help_sections(command)
    assert "--sampler [euler|heun] How Ours steps. Default: euler." in help_text["Options of family ours"]
    assert "--sampler [ddpm|ddim] How Theirs steps. Default: ddpm." in help_text["Options of family theirs"]
    assert "--strength FLOAT Of Ours. Default: 1.0." in help_text["Options of family ours"]
    assert "--strength INTEGER Of Theirs. Default: 5." in help_text["Options of family theirs"]
    assert "only-ours" not in help_text["Options of family theirs"]


def test_help_shows_choices_as_configs_write_them_and_the_command_line_takes_both_spellings(command):
    assert "--offload [by_block|by_layer] What" in help_sections(command)["Options of family theirs"]
    for value in ("by_layer", "by-layer"):
        assert command.make_context("generate", ["--offload", value]).params["offload"] == "by_layer"


def test_help_leaves_out_a_family_without_options_of_its_own():
    families = {"ours": family("ours", Ours), "plain": family("plain", Options)}
    assert "Options of family plain" not in help_sections(stage_command(STAGES["generate"], families))


@pytest.mark.parametrize(
    ("model", "value", "error"),
    [
        ("ours", "heun", ""),
        ("theirs", "ddim", ""),
        ("ours", "ddim", "option sampler is 'ddim': it must be one of euler, heun"),
        ("theirs", "heun", "option sampler is 'heun': it must be one of ddpm, ddim"),
    ],
)
def test_the_model_s_family_decides_the_choices_of_an_option(command, tmp_path, model, value, error):
    (tmp_path / "model").mkdir()
    config = tmp_path / "config.yaml"
    config.write_text(f"models: {{mine: {{family: {model}, path: {tmp_path / 'model'}}}}}")
    arguments = [tmp_path / "e.safetensors", "-o", tmp_path / "l.safetensors", "--model", "mine", "--config", config]
    result = CliRunner().invoke(command, [*map(str, arguments), "--sampler", value])
    assert (error or "e.safetensors does not exist") in result.output and result.exit_code == (2 if error else 1)


def test_an_option_value_that_no_family_takes_is_refused_at_once(command):
    result = CliRunner().invoke(command, ["x.safetensors", "-o", "y.safetensors", "--sampler", "other"])
    assert "'other' is not one of 'euler', 'heun', 'ddpm', 'ddim'" in result.output


@pytest.mark.parametrize("name", ["dtype", "lora", "checkpoint_every", "negative_prompt"])
@pytest.mark.parametrize("stage", ["encode", "generate"])
def test_help_has_the_option_text_of_every_family(stage, name):
    help_text = help_sections(stage_command(STAGES[stage], FAMILIES))
    for family in FAMILIES.values():
        section = help_text.get(f"Options of family {family.name}", "").replace("- ", "-")
        for declared in family.options_of(stage) if stage in family.stages else ():
            if declared.name == name:
                assert " ".join(f"{declared.help}".split()) in section


def test_help_lists_the_aliases_of_an_option():
    help_text = help_sections(stage_command(STAGES["generate"], FAMILIES))
    assert "--num-inference-steps, --steps, --sample-steps INTEGER" in help_text["Options of family wan"]
