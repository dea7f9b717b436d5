"""Options: which values they take, wherever a value comes from."""

import math
import os

import pytest
from jsonschema import Draft202012Validator

from stages.plan.families import ALL_FAMILIES
from stages.plan.recipes import RECIPES
from stages.plan.schema import all_options, validator_class
from stages.runtime.errors import UsageError
from stages.runtime.options import Option, Options, option

DECLARED = [(name, option) for name, family in ALL_FAMILIES.items() for option in family.options]
TRAININGS = {name: training for family in ALL_FAMILIES.values() for name, training in family.trainings.items()}
TRAINED = [(name, option) for name, training in TRAININGS.items() for option in training.options.declared]
DECLARED += TRAINED
DECLARED += [(name, option) for name, recipe in RECIPES.items() for option in recipe.OPTIONS.declared]
NUMBERS = [(name, option) for name, option in DECLARED if option.type in (int, float) and not option.choices]


def for_each(owner, options):
    return pytest.mark.parametrize(("owner", "option"), options, ids=[f"{name}-{option.name}" for name, option in options])


@for_each("number", NUMBERS)
def test_every_number_option_has_bounds_and_keeps_them(owner, option):
    assert option.minimum is not None and option.maximum is not None
    assert -math.inf < option.minimum <= option.maximum < 10**19
    low, high = ([bound] if option.many else bound for bound in (option.minimum, option.maximum))
    for bad in (option.maximum + 1, option.minimum - 1, 10**30, -(10**30)):
        with pytest.raises(UsageError, match=f"option {option.name} is .*: it must be at (most|least)"):
            option.parse(bad)
    if not (option.check or option.form):
        assert option.parse(low) == low and option.parse(high) == high


@for_each("number", NUMBERS)
def test_every_number_option_refuses_nan_and_infinity(owner, option):
    for value in (math.nan, math.inf, -math.inf, "nan", "inf", "-Infinity", "1e999", " NaN "):
        with pytest.raises(UsageError, match=f"option {option.name} is"):
            option.parse(value)
        if isinstance(value, float):
            assert not validator_class()(option.schema()).is_valid(value)


VALUES = [
    *(0, 1, -1, 3, 5, 0.5, 1.0, True, False, None, "", "1", "0.5", "yes", "abc", "7 ", [1], ["1"], [], [None], {}, {"a": 1}),
    *(10**30, "9" * 5000, "none", "bfloat16"),
]


@for_each("option", DECLARED)
def test_option_schema_takes_what_parse_takes(owner, option):
    """Text that stands for a number or a flag is left out: only `parse` converts it."""
    validator = validator_class()(option.schema())
    for value in VALUES:
        texts = [value] if not isinstance(value, list) else value
        if any(isinstance(text, str) for text in texts) and option.type is not str:
            continue
        try:
            option.parse(value)
        except UsageError:
            looks_deeper = option.check or option.form
            assert looks_deeper or not validator.is_valid(value), (option.name, value)
        else:
            optional = value is None and (option.default is None or callable(option.default))
            assert optional or validator.is_valid(value), (option.name, value)


def test_config_option_takes_what_any_option_of_its_name_takes():
    batch_size = all_options()["batch_size"]
    assert (batch_size.minimum, batch_size.maximum) == (1, 256)  # clips of DynamiCrafter, keyframes of FRESCO
    for name, merged in all_options().items():
        Draft202012Validator.check_schema(merged.schema())
        assert name == merged.name


def declare_option(kind: type, **attributes) -> Option:
    """An option `x` of a type."""

    class Declaring(Options):
        x: kind = option(kind(), "", **attributes)

    return Declaring.declared[0]


@pytest.mark.parametrize(
    ("type", "value", "parsed"),
    [
        (int, "7", 7),
        (int, " 7 ", 7),
        (int, 7.0, 7),
        (float, "7", 7.0),
        (float, 7, 7.0),
        (float, "1e-4", 1e-4),
        (bool, "Yes", True),
        (bool, " off ", False),
        (str, "7", "7"),
    ],
)
def test_parse_converts_text_to_the_option_type(type, value, parsed):
    assert declare_option(type).parse(value) == parsed


@pytest.mark.parametrize(
    ("type", "value", "message"),
    [
        (int, 7.5, "option x is 7.5: it must be a whole number"),
        (int, True, "a whole number"),
        (int, "0x10", "a whole number"),
        (int, int("9" * 4000), r"option x is 9+\.\.\. \(4000 characters\): it must be at most 9"),
        (float, [16**5000], "option x is a value of type list: it must be a number"),
        (float, "1_0e", "a number"),
        (str, 7, 'option x is 7: it must be text: write it in quotes, such as "7"'),
        (str, True, 'it must be text: write it in quotes, such as "yes"'),
        (str, "caf\udce9", "it must be UTF-8 text without NUL"),
        (str, "a\0b", "it must be UTF-8 text without NUL"),
        (str, ["a"], "it must be text"),
        (bool, "maybe", "true or false"),
        (bool, 1, "true or false"),
    ],
)
def test_parse_reports_an_invalid_value_in_one_short_sentence(type, value, message):
    with pytest.raises(UsageError, match=message) as caught:
        declare_option(type, maximum=None if type in (str, bool) else 9).parse(value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["masks", "last_image"])
def test_file_options_may_start_with_a_tilde(name):
    assert all_options()[name].parse("~/a.mp4") == os.path.expanduser("~/a.mp4")


def test_an_option_of_several_files_takes_one_several_or_none():
    lora, home = all_options()["lora"], os.path.expanduser("~")
    assert lora.parse("~/a.safetensors") == [f"{home}/a.safetensors"]
    assert lora.parse(["~/a.safetensors", "b.safetensors"]) == [f"{home}/a.safetensors", "b.safetensors"]
    assert lora.parse("") == lora.parse([]) == []


def test_training_folder_options_may_start_with_a_tilde():
    for name in ("data", "start_from", "vae"):
        options = [option for _, option in TRAINED if option.name == name]
        assert options and all(option.parse("~/here") == os.path.expanduser("~/here") for option in options)


@pytest.mark.parametrize("spelling", ["64*64", "64x64", "64X64", "64 x 64", " 64 * 64 "])
def test_size_options_of_all_families_have_one_spelling(spelling):
    sizes = [option for _, option in DECLARED if option.name == "size"]
    assert len(sizes) == 6
    assert {option.parse(spelling) for option in sizes} == {"64*64"}
