"""What enters the store key of a result: an option that is added later must not invalidate finished work."""

from dataclasses import replace

import pytest

from stages.families import FAMILIES
from stages.runtime.errors import UsageError
from stages.runtime.items import Item
from stages.runtime.key import digest_options, digest_work
from stages.runtime.options import Options, option, rename_aliases, resolve
from stages.runtime.stages import STAGES
from tests.runtime import toys


class Before(Options):
    factor: int = option(1, "Multiplies")


class After(Before):
    step_cache: str = option("none", "Skip steps whose result hardly changes", choices=("none", "fast"), neutral="none")
    style: str = option("", "A file", is_file=True)
    label: str = option("", "Changes nothing", changes_result=False)


def digest(options, **values):
    return digest_options(options.declared, resolve(options.declared, values))


def test_store_key_ignores_an_option_at_its_neutral_value():
    assert digest(After) == digest(Before) != digest(After, factor=2)
    assert digest(After, label="other") == digest(Before)


def test_store_key_depends_on_a_value_that_is_not_neutral():
    assert digest(After, step_cache="fast") != digest(Before)


@pytest.mark.parametrize(
    ("family", "variant", "own", "key"),
    [
        ("wan", "14b", {"lora_scale": 0.5}, "28388e11c53e6dbbf07b66475b8b03e857976cb5eb4f98b11646b7b209119f52"),
        ("longlive", "", {}, "d0fec30f31ae2dc6ce740e6d177fbf7bca932e8956afbd00311903085f356902"),
    ],
)
def test_a_result_with_one_lora_keeps_the_key_that_it_had_when_there_could_be_only_one(family, variant, own, key):
    """The keys are those that the commit before this option was a list computed for the same work."""

    def work(digests, **own):
        implementation = FAMILIES[family].stages["generate"]
        options = implementation.options.resolved({"seed": 1, "lora": "a", **own}, variant)
        named = digest_options(implementation.options.declared, options.values())
        return digest_work(STAGES["generate"], FAMILIES[family], named, {"lora": digests}, {"encoded": ["e"]}, "w")

    assert work(["f00"], **own) == key
    stacks = [work(files, lora_scale=scales) for files in (["f00", "f01"], ["f01", "f00"]) for scales in ([1, 0.5], [0.5])]
    assert len({key, *stacks}) == 5  # the order counts: the last bit of a sum may depend on it


def run_item(tmp_path, options, **values):
    """Run an item whose stage has these options. Returns how many items were run, and how many reused."""
    (tmp_path / "in.txt").write_text("text")
    resolved = resolve(options.declared, values)
    item = Item("a", {"video": str(tmp_path / "in.txt")}, str(tmp_path / "out/a.json"), resolved)
    report = toys.loop(tmp_path / "store", options=options).run([item])
    return report.made, report.reused


class Old(toys.ToyOptions):
    pass


class New(toys.ToyOptions):
    step_cache: str = option("none", "Skip steps", neutral="none")
    style: str = option("", "A file", is_file=True)


def test_finished_work_is_reused_after_a_stage_gets_a_neutral_option(tmp_path):
    assert run_item(tmp_path, Old) == (1, 0)
    assert run_item(tmp_path, New) == (0, 1)
    assert run_item(tmp_path, New, step_cache="fast") == (1, 0)
    (tmp_path / "style").write_text("one")
    assert run_item(tmp_path, New, style=str(tmp_path / "style")) == (1, 0)


class Named(Options):
    num_inference_steps: int = option(40, "Steps", aliases=("steps", "sample_steps"))


def test_rename_aliases_uses_the_canonical_name():
    assert rename_aliases(Named.declared, {"steps": 3, "other": 1}) == {"num_inference_steps": 3, "other": 1}


@pytest.mark.parametrize("given", [{"steps": 3, "num_inference_steps": 4}, {"sample_steps": 3, "steps": 4}])
def test_rename_aliases_refuses_different_values_under_two_names(given):
    one, other = given
    with pytest.raises(UsageError, match=f"{other} is 4 and {one} is 3, two names of one option: leave one of them out"):
        rename_aliases(Named.declared, given)


def test_rename_aliases_takes_one_value_under_two_names():
    """This happens when the resolved config of a run is merged over the original config."""
    assert rename_aliases(Named.declared, {"steps": 3, "num_inference_steps": 3}) == {"num_inference_steps": 3}


def test_redeclared_changes_only_the_given_fields():
    class Longer(Named):
        num_inference_steps: int = Named.redeclared("num_inference_steps", default=50)

    (before,), (after,) = Named.declared, Longer.declared
    assert after == replace(before, default=50)
