"""Names of films, runs and clips are safe as paths and in Snakemake's rules."""

import os
import re
from pathlib import Path

import pytest

from stages import plan
from stages.plan.names import LONGEST, part_of_name, path_fault, template_fault
from stages.runtime.errors import UsageError


@pytest.mark.parametrize(
    "template",
    [
        "{clip}.mp4",
        "{idx:04d}_{seed}.mp4",
        "rank{rank}-{idx}-{sample}_{model_type}.mp4",
        "{link:02d}/{clip}.mp4",
        "{seed:5d}.mp4",
    ],
)
def test_name_templates_take_plain_fields_with_small_widths(template):
    assert template_fault(template) is None


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{clip.__class__}.mp4", "it has the field 'clip.__class__'"),
        ("{clip[0]}.mp4", r"it has the field 'clip\[0\]'"),
        ("{link:>1000000000}.mp4", "write the field as {link}, or {link:02d}"),
        ("{link:999d}.mp4", "or {link:02d}"),
        ("{link:{idx}}.mp4", "or {link:02d}"),
        ("{clip:>9}.mp4", "write the field as {clip}$"),
        ("{clip!r}.mp4", "write the field as {clip}$"),
        ("{link:x}.mp4", "or {link:02d}"),
        ("{}.mp4", "it has the field ''"),
        ("{0}.mp4", "it has the field '0'"),
        ("{nothing}.mp4", "known are clip"),
        ("{clip.mp4", "mend its braces"),
        ("{{x}}.mp4", "leave out braces"),
        ("<{clip}>.mp4", "leave out braces, < and >"),
        ("a\n{clip}.mp4", "control characters"),
        ("a\x07{clip}.mp4", "control characters"),
    ],
)
def test_name_templates_refuse_anything_else(config, template, fault):
    assert re.search(fault, template_fault(template))
    config["runs"]["demo"]["name"] = template
    with pytest.raises(UsageError, match="name(| of run demo) is"):
        plan.load(config, 1)
    config["runs"]["demo"] |= {"name": "{clip}.mp4", "recipe": "chain", "options": {"link_name": template}}
    with pytest.raises(UsageError, match="option link_name is"):
        plan.load(config, 1)


@pytest.mark.parametrize(
    "name",
    [
        *("/a.mp4", "../a.mp4", "a/../../b.mp4", "plan.mp4", "steps/a.mp4", ""),
        *("a//b.mp4", "./a.mp4", ".a.mp4", " a.mp4", "x /a.mp4", "a\n.mp4", "<a>.mp4", "a\x85.mp4", "caf\udce9.mp4"),
        f"{'x' * LONGEST}.mp4",
        f"{'海' * 70}.mp4",
        f"a{'.mp4' * 20}",
    ],
)
def test_path_fault_refuses_unsafe_film_names(name):
    assert path_fault(name)


@pytest.mark.parametrize(
    "name", [f"a{'.mp4' * 19}", "a.mp4", "a/b.mp4", "海滩.mp4", "a b.mp4", f"{'0' * 150}.mp4", f"{'海' * 60}.mp4"]
)
def test_path_fault_takes_safe_film_names(name):
    assert path_fault(name) is None


@pytest.mark.parametrize("stem", ["{x}", "a<b>", "x" * 180, "line\nbreak", "caf\udce9"])
def test_a_file_with_an_odd_name_gives_a_film_with_a_safe_name(config, stem):
    config["models"]["crafter"] = {"family": "dynamicrafter", "variant": "256", "path": "w"}
    clip = {"id": "a", "image": f"{stem}.png", "prompt": "a bear"}
    config["runs"]["demo"] = {"recipe": "dynamicrafter", "model": "crafter", "clips": [clip], "name": "{image}.mp4"}
    if stem.endswith("\udce9"):
        with pytest.raises(UsageError, match="the config has half a character"):
            plan.load(config, 1)
        return
    (film,) = plan.load(config, 1).films
    assert path_fault(Path(film).name) is None
    assert film == f"results/demo/{part_of_name(stem)}.mp4" and part_of_name(stem) != part_of_name(stem + "x")


@pytest.mark.parametrize("name", ["{x}.mp4", "a<results>.mp4", "new\nline.mp4", "bell\x07.mp4"])
@pytest.mark.parametrize("folder", ["", "results/demo/"])
def test_files_that_snakemake_would_misread_are_left_out_of_rule_inputs(config, name, folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, name).touch()
    config["runs"]["demo"]["clips"] = [{"video": folder + name, "prompt": "p"}]
    planned = plan.load(config, 1)
    assert planned.jobs[0].inputs == [] and planned.jobs[0].items[0].inputs["video"] == folder + name


@pytest.mark.parametrize(
    "other", ["demo.concat", "demo.generate.000", "weights.small", "weights.eye", "all.concat", "training.t"]
)
def test_a_run_with_the_name_of_a_rule_is_refused(config, other):
    Path("t.yaml").write_text("training: text2video\n")
    config["trainings"] = {"t": "t.yaml"}
    config["runs"][other] = {**config["runs"]["demo"]}
    if other == "all.concat":
        assert len(plan.load(config, 1).rules()) == len(set(plan.load(config, 1).rules()))
        return
    with pytest.raises(UsageError, match=f"the run {re.escape(other)} has the name of a rule of Kinemake: give it another"):
        plan.load(config, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (7, "config.runs has the key 7: it must be text: write it in quotes"),
        ("x" * 101, "config.runs has the key 'xxx.*: a name has 1 to 100 letters"),
        ("a\n", r"config.runs has the key 'a\\n': a name has"),
        ("{x}", "config.runs has the key '{x}'"),
        ("a/b", "config.runs has the key 'a/b'"),
        ("weights", "config.runs has the key 'weights': .* of a run it is not store, all, training, weights"),
    ],
)
def test_an_invalid_run_name_is_reported_with_the_rule(config, name, message):
    config["runs"][name] = config["runs"]["demo"]
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"results": "a{b}"}, "config.results is 'a{b}': leave out braces"),
        ({"results": "a<b>"}, "config.results is 'a<b>'"),
        ({"results": "a\nb"}, "config.results is"),
        ({"store": "a{b}"}, "config.store is"),
        ({"store": "results"}, "the store results holds the results, results: choose another folder"),
        ({"store": "results/demo/store"}, "the store results/demo/store lies in the folder of run demo"),
    ],
)
def test_invalid_results_and_store_folders_are_refused(config, folders, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        plan.load({**config, **folders}, 1)


def test_results_and_model_paths_may_start_with_a_tilde(config):
    config["models"]["small"] = {"family": "wan", "variant": "5b", "path": "~/weights"}
    config["runs"]["demo"]["options"]["lora"] = "~/style.safetensors"
    planned = plan.load({**config, "results": "~/films/", "store": "~/films/store"}, 1)
    home = os.path.expanduser("~")
    assert list(planned.films) == [f"{home}/films/demo/a.mp4", f"{home}/films/demo/b.mp4"]
    generate = next(part for part in planned.parts if part.step == "generate")
    assert generate.model.path == f"{home}/weights" and generate.items[0].options["lora"] == [f"{home}/style.safetensors"]
    assert generate.run.store == f"{home}/films/store"


def test_a_film_name_that_would_replace_a_link_of_its_clip_is_refused(config):
    config["runs"]["demo"] |= {"recipe": "chain", "name": "{clip}/video_01_{clip}.mp4"}
    with pytest.raises(UsageError, match="results/demo/a/video_01_a.json of run demo would be made for a"):
        plan.load(config, 1)


@pytest.mark.parametrize("size", ["1280*704", "1280x704", "1280 X 704"])
@pytest.mark.parametrize("declared", ["1280*704", "1280x704"])
def test_sizes_are_compared_in_any_spelling(config, jobs, size, declared):
    config["models"]["small"]["sizes"] = [declared]
    config["runs"]["demo"]["options"]["size"] = size
    by_name = jobs()
    assert by_name["demo.encode.000"].items[0].options["size"] == "1280*704"
    assert by_name["demo.extract_frames.000"].items[0].options["size"] == "1280*704"
