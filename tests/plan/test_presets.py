"""`preset: NAME` of a model gives a run the figures of a published few-step release, and refuses what contradicts them."""

import re

import pytest

from stages import plan
from stages.families import FAMILIES
from stages.families.wan.presets import PRESETS
from stages.runtime.errors import UsageError
from stages.runtime.hub import parse_source

LIGHTX2V = "lightx2v-i2v-a14b-4"
FILES = (
    "kinemake/files/lightx2v/Wan2.2-Distill-Loras/main/wan2.2_i2v_A14b_{}_noise_lora_rank64_lightx2v_4step_1022.safetensors"
)
# the figures of the releases, by preset: docs/models.md names the sources
FOUR_STEPS = {
    "sampler": "euler",
    "num_inference_steps": 4,
    "shift": 5.0,
    "sigma_grid": "wan",
    "guidance_scale": 1.0,
    "guidance_scale_2": None,
    "guider": "cfg",
    "skip_layers": [],
    "boundary_ratio": 0.9,
}
FIGURES = {
    LIGHTX2V: FOUR_STEPS,
    "lightning-i2v-a14b-4": FOUR_STEPS,
    "distilled-i2v-a14b-4": FOUR_STEPS,
    "lightx2v-t2v-a14b-4": {**FOUR_STEPS, "boundary_ratio": 0.875},
    "lightning-t2v-a14b-4": {**FOUR_STEPS, "boundary_ratio": 0.875},
    "fastwan-ti2v-5b-3": {
        "sampler": "lcm",
        "timesteps": [1000, 757, 522],
        "num_inference_steps": 3,
        "shift": 1.0,
        "guidance_scale": 1.0,
        "guider": "cfg",
        "skip_layers": [],
    },
}


@pytest.fixture(autouse=True)
def hub_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def declare(config, preset, **changes):
    """The config with a run of a model with this preset."""
    model = {"family": "wan", "variant": PRESETS[preset].variant, "hub": "Some-Org/Some-Model", "preset": preset}
    config["models"]["fast"] = model | changes
    recipe, inputs = ("text2video", {}) if model["variant"].endswith("t2v") else ("v2v", {"video": "a.mp4"})
    run = {"recipe": recipe, "model": "fast", "clips": [{**inputs, "prompt": "a cat"}], "options": {"seed": 7}}
    if recipe == "text2video":
        del config["runs"]["demo"]["captioner"]
    config["runs"]["demo"] |= run
    return config


def generating(config):
    """The options of `generate` in the plan."""
    jobs = {job.name: job for job in plan.load(config, 1).jobs}
    return jobs["demo.generate.000"].items[0].options


@pytest.mark.parametrize("preset", FIGURES)
def test_a_preset_resolves_to_the_figures_of_its_release(config, preset):
    options = generating(declare(config, preset))
    assert {name: options[name] for name in FIGURES[preset]} == FIGURES[preset]
    assert FIGURES.keys() == PRESETS.keys()


def test_a_preset_brings_the_lora_files_of_both_experts(config, tmp_path):
    options = generating(declare(config, LIGHTX2V))
    assert options["lora"] == [str(tmp_path / "hf" / FILES.format("high"))]
    assert options["lora_2"] == [str(tmp_path / "hf" / FILES.format("low"))]


def test_the_values_of_presets_are_options_and_their_files_are_addresses():
    for family in FAMILIES.values():
        declared = {one.name: one for one in family.options}
        for preset in family.presets.values():
            assert preset.variant in (family.variants or ("",)) and preset.source
            for name, value in {**preset.options, **preset.advised}.items():
                assert declared[name].parse(value) == value
            for name, sources in preset.files.items():
                assert declared[name].is_file and all(parse_source(source)[2].endswith(".safetensors") for source in sources)


@pytest.mark.parametrize("place", ["model", "run", "clip", "command line"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("guidance_scale", 5.0),
        ("guidance_scale_2", 3.0),
        ("num_inference_steps", 40),
        ("steps", 40),
        ("shift", 3.0),
        ("boundary_ratio", 0.5),
        ("sigma_grid", "diffusers"),
        ("sampler", "unipc"),
        ("skip_layers", [1]),
    ],
)
def test_an_option_that_contradicts_the_preset_is_refused_wherever_it_is_set(config, place, option, value):
    declare(config, LIGHTX2V)
    places = {
        "model": config["models"]["fast"].setdefault("options", {}),
        "run": config["runs"]["demo"]["options"],
        "clip": config["runs"]["demo"]["clips"][0],
        "command line": config.setdefault("options", {}),
    }
    places[place][option] = value
    name = "num_inference_steps" if option == "steps" else option
    sentence = rf"{name} is {re.escape(repr(value))} and preset {LIGHTX2V} of model fast has .*: leave {name} out"
    with pytest.raises(UsageError, match=sentence):
        plan.load(config, 1)


def test_a_value_that_the_preset_has_too_is_no_contradiction(config):
    declare(config, LIGHTX2V, options={"steps": 4, "guidance_scale": 1})
    assert generating(config)["num_inference_steps"] == 4


def test_a_preset_keeps_its_lora_beside_another(config, tmp_path):
    speed = PRESETS[LIGHTX2V].files["lora"][0]
    declare(config, LIGHTX2V, options={"lora": [speed, "style.safetensors"], "lora_scale": [1.0, 0.8]})
    planned = plan.load(config, 1)
    options = {job.name: job for job in planned.jobs}["demo.generate.000"].items[0].options
    assert options["lora"] == [str(tmp_path / "hf" / FILES.format("high")), "style.safetensors"]
    assert not [warning for warning in planned.warnings if "preset" in warning]
    config["runs"]["demo"]["options"] |= {"lora": "style.safetensors", "lora_scale": 1}
    with pytest.raises(UsageError, match=f"lora lacks {speed}, which preset {LIGHTX2V} of model fast consists of"):
        plan.load(config, 1)


def test_another_strength_of_the_lora_is_warned_of(config):
    declare(config, LIGHTX2V)["runs"]["demo"]["options"]["lora_scale"] = 0.8
    planned = plan.load(config, 1)
    assert f"lora_scale is [0.8], and preset {LIGHTX2V} of model fast was made for [1.0]" in planned.warnings


def test_an_unknown_preset_is_refused(config):
    declare(config, LIGHTX2V)["models"]["fast"]["preset"] = "lightx2v"
    with pytest.raises(UsageError, match="config.models.fast.preset is 'lightx2v'"):
        plan.load(config, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "5b"}, f"preset {LIGHTX2V} is for variant 14b and model fast is 5b"),
        ({"options": {"lora": ["hub://us/repository"]}}, "options of model fast name hub://us/repository, a repository"),
        ({"options": {"lora": ["hub://us"]}}, "'hub://us' is no address on the model hub"),
    ],
)
def test_a_wrong_preset_is_refused(config, changes, message):
    with pytest.raises(UsageError, match=message):
        plan.load(declare(config, LIGHTX2V, **changes), 1)


def test_an_address_in_a_run_is_refused_because_nothing_would_fetch_it(config):
    declare(config, LIGHTX2V)["runs"]["demo"]["options"]["lora"] = "hub://us/loras/style.safetensors"
    with pytest.raises(UsageError, match="name it in the options of a model in the config, so that fetch downloads it"):
        plan.load(config, 1)
