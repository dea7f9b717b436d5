"""Names of films, runs and clips: safe as paths and in Snakemake's rules, whatever they are made of."""

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
def test_plain_fields_with_small_widths_are_taken(template):
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
def test_anything_else_in_a_template_is_refused(config, template, fault):
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
def test_paths_that_are_no_names_of_films(name):
    assert path_fault(name)


@pytest.mark.parametrize(
    "name", [f"a{'.mp4' * 19}", "a.mp4", "a/b.mp4", "海滩.mp4", "a b.mp4", f"{'0' * 150}.mp4", f"{'海' * 60}.mp4"]
)
def test_paths_that_are(name):
    assert path_fault(name) is None


@pytest.mark.parametrize("stem", ["{x}", "a<b>", "x" * 180, "line\nbreak", "caf\udce9"])
def test_a_file_of_an_odd_name_gives_a_film_of_a_plain_one(config, stem):
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
def test_inputs_that_snakemake_would_misread_are_no_inputs_of_rules(config, name, folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, name).touch()
    config["runs"]["demo"]["clips"] = [{"video": folder + name, "prompt": "p"}]
    planned = plan.load(config, 1)
    assert planned.jobs[0].inputs == [] and planned.jobs[0].items[0].inputs["video"] == folder + name


@pytest.mark.parametrize(
    "other", ["demo.concat", "demo.generate.000", "weights.small", "weights.eye", "all.concat", "training.t"]
)
def test_a_run_called_like_a_rule_is_refused(config, other):
    Path("t.yaml").write_text("training: text2video\n")
    config["trainings"] = {"t": "t.yaml"}
    config["runs"][other] = {**config["runs"]["demo"]}
    if other == "all.concat":
        assert len(plan.load(config, 1).rules()) == len(set(plan.load(config, 1).rules()))
        return
    with pytest.raises(
        UsageError, match=f"the run {re.escape(other)} is called like a rule of Kinemake's own: give it another"
    ):
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
def test_names_of_runs_that_cannot_be_are_told_with_the_rule(config, name, message):
    config["runs"][name] = config["runs"]["demo"]
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"results": "a{b}"}, "config.results is 'a{b}': leave out braces"),
        ({"results": "a<b>"}, "config.results is 'a<b>'"),
        ({"results": "a\nb"}, "config.results is"),
        ({"store": "a{b}"}, "config.store is"),
        ({"store": "results"}, "the store results holds the results, results: choose another folder"),
        ({"store": "results/demo/store"}, "the store results/demo/store lies in the folder of run demo"),
    ],
)
def test_folders_that_cannot_be_are_told(config, places, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        plan.load({**config, **places}, 1)


def test_results_and_models_start_from_the_home_folder(config):
    config["models"]["small"] = {"family": "wan", "variant": "5b", "path": "~/weights"}
    config["runs"]["demo"]["options"]["lora"] = "~/style.safetensors"
    planned = plan.load({**config, "results": "~/films/", "store": "~/films/store"}, 1)
    home = os.path.expanduser("~")
    assert list(planned.films) == [f"{home}/films/demo/a.mp4", f"{home}/films/demo/b.mp4"]
    generate = next(job for job in planned.jobs if ".generate." in job.name)
    assert generate.model.path == f"{home}/weights" and generate.items[0].options["lora"] == f"{home}/style.safetensors"
    assert generate.run.store == f"{home}/films/store"


def test_a_film_never_takes_the_place_of_a_clip_s_own_file(config):
    config["runs"]["demo"] = {
        "recipe": "text2video",
        "model": "small",
        "clips": [{"id": "a", "prompt": "a kite"}],
        "name": "{clip}/{clip}.mp4",
    }
    with pytest.raises(UsageError, match="results/demo/a/a.json of run demo would be made for a and for a"):
        plan.load(config, 1)


@pytest.mark.parametrize("size", ["1280*704", "1280x704", "1280 X 704"])
@pytest.mark.parametrize("declared", ["1280*704", "1280x704"])
def test_sizes_are_compared_by_what_they_mean(config, jobs, size, declared):
    config["models"]["small"]["sizes"] = [declared]
    config["runs"]["demo"]["options"]["size"] = size
    made = jobs()
    assert made["demo.encode.000"].items[0].options["size"] == "1280*704"
    assert made["demo.extract_frames.000"].items[0].options["size"] == "1280*704"
