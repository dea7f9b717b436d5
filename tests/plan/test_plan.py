"""Which jobs come of which config, and which again after which change."""

import fcntl
import hashlib
import json
import os
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.plan.families import ALL
from stages.plan.recipes import RECIPES
from stages.plan.schema import all_options
from stages.runtime.errors import UsageError
from stages.runtime.made import Made, made_path, write_made

# options of stages without a model that only fresco has
MOVING = {"mininterv", "maxinterv"} | {option.name for option in ALL["media"].of_stage("propagate")}


def fingerprints(config, workers=1):
    planned = plan.load(config, workers)
    jobs = [*planned.jobs, *planned.films.values()]
    return {job.name: [(item.output, item.fingerprint) for item in job.items] for job in jobs}


def changed(config, workers=1, **change):
    """Names of the jobs that come out otherwise after a change of the run demo."""
    before = fingerprints(config, workers)
    config["runs"]["demo"].update(change)
    after = fingerprints(config, workers)
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_v2v_is_six_stages(jobs):
    made = jobs()
    work = "results/demo/steps"
    assert {name: (job.outputs, job.needs) for name, job in made.items()} == {
        "demo.extract_frames.000": ([f"{work}/a/frames.json", f"{work}/b/frames.json"], set()),
        "demo.caption_vlm.000": ([f"{work}/a/caption.json", f"{work}/b/caption.json"], set()),
        "demo.encode.000": (
            [f"{work}/a/encoded.safetensors", f"{work}/b/encoded.safetensors"],
            {"demo.extract_frames.000", "demo.caption_vlm.000"},
        ),
        "demo.generate.000": ([f"{work}/a/latents.safetensors", f"{work}/b/latents.safetensors"], {"demo.encode.000"}),
        "demo.decode.000": ([f"{work}/a/clip.json", f"{work}/b/clip.json"], {"demo.generate.000"}),
        "films/a": (["results/demo/a.mp4"], {"demo.decode.000"}),
        "films/b": (["results/demo/b.mp4"], {"demo.decode.000"}),
    }
    weights = {"caption_vlm": "eye", "encode": "small", "generate": "small", "decode": "small"}
    for stage in ("extract_frames", *weights):
        loaded = [f"results/weights/{weights[stage]}.json"] if stage in weights else []
        before = [made[name].mark for name in sorted(made[f"demo.{stage}.000"].needs)]
        assert made[f"demo.{stage}.000"].inputs == before + loaded


def test_a_chain_hands_each_link_to_the_next(config, jobs):
    config["runs"]["demo"] |= {"recipe": "chain", "clips": [{"video": "a.mp4"}], "model": "big"}
    config["runs"]["demo"]["options"]["links"] = 3
    made = jobs()
    link = "results/demo/a/video_{:02d}_a.json".format
    assert [job.outputs[0] for name, job in made.items() if "decode" in name] == [link(1), link(2), link(3)]
    assert made["demo.caption_vlm.link02.000"].items[0].inputs == {"video": link(1)}
    assert made["demo.caption_vlm.link02.000"].needs == {"demo.decode.link01.000"}
    assert made["demo.encode.link03.000"].needs == {"demo.decode.link02.000", "demo.caption_vlm.link03.000"}
    assert [made[f"demo.generate.link0{n}.000"].items[0].options["seed"] for n in (1, 2, 3)] == [7, 8, 9]
    assert made["films/a"].items[0].inputs == {"clips": [link(1), link(2), link(3)]}
    assert made["films/a"].needs == {f"demo.decode.link0{n}.000" for n in (1, 2, 3)}
    assert made["films/a"].items[0].options["names"] == ["a.mp4"] + [f"video_0{n}_a.mp4" for n in (1, 2, 3)]
    assert made["demo.caption_vlm.link01.000"].items[0].options["prefix"] == "continue video"


def test_a_chain_has_twelve_links_by_default(config, jobs):
    config["runs"]["demo"] |= {"recipe": "chain"}
    assert sum("generate" in name for name in jobs()) == 12


def test_more_links_touch_no_earlier_one(config):
    config["runs"]["demo"] |= {"recipe": "chain", "options": {"seed": 7, "links": 4}}
    again = changed(config, options={"seed": 7, "links": 6})
    stages = ("caption_vlm", "encode", "generate", "decode")
    new = {f"demo.{stage}.link0{n}.000" for stage in stages for n in (5, 6)}
    assert again == new | {"films/a", "films/b"}


def test_the_first_description_can_serve_all_links(config, jobs):
    config["runs"]["demo"] |= {"recipe": "chain", "options": {"links": 3, "prompt_mode": "first"}}
    made = jobs()
    assert [name for name in made if "caption" in name] == ["demo.caption_vlm.link01.000"]
    assert made["demo.encode.link03.000"].items[0].inputs["caption"] == "results/demo/steps/a/link01/caption.json"


@pytest.mark.parametrize(("clip", "prompts"), [({"prompt": "p"}, ["p"]), ({"prompts": ["p", "q"]}, ["p", "q"])])
def test_given_prompts_need_no_captioner(config, jobs, clip, prompts):
    config["runs"]["demo"] |= {"recipe": "chain", "clips": [{"video": "a.mp4", **clip}], "options": {"links": 2}}
    del config["runs"]["demo"]["captioner"]
    captions = [job for name, job in jobs().items() if "caption" in name]
    assert [job.items[0].options["prompt"] for job in captions] == prompts
    assert {job.gpu for job in captions} == {0}


def test_a_wrong_number_of_prompts_is_refused(config):
    config["runs"]["demo"] |= {"recipe": "chain", "clips": [{"video": "a.mp4", "prompts": ["p", "q"]}]}
    with pytest.raises(UsageError, match="clip a of run demo has 2 prompts for 12 links: give one for all, or one for each"):
        plan.load(config, 1)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"steps": 5}, {"generate", "decode"}),
        ({"seed": 8}, {"generate", "decode"}),
        ({"fps": 12}, {"decode"}),
        ({"frame_num": 17}, {"encode", "generate", "decode"}),
        ({"instruction": "What is it?"}, {"caption_vlm", "encode", "generate", "decode"}),
        ({"size": "704*1280"}, {"extract_frames", "encode", "generate", "decode"}),
        ({"offload": "block_level"}, set()),
        ({"checkpoint_every": 3}, set()),
    ],
    ids=lambda value: min(value, default="nothing"),
)
def test_a_change_asks_for_its_own_stage_and_those_after_it(config, options, again):
    films = {"films/a", "films/b"} if again else set()
    assert changed(config, options={"seed": 7, **options}) == {f"demo.{stage}.000" for stage in again} | films


def test_one_clip_s_option_changes_its_own_shard_only(config):
    config["runs"]["demo"]["clips"] = [{"video": f"{name}.mp4"} for name in "abcd"]
    clips = [{"video": "a.mp4", "steps": 3}, *config["runs"]["demo"]["clips"][1:]]
    assert changed(config, workers=4, clips=clips) == {"demo.generate.000", "demo.decode.000", "films/a"}


def test_precedence_command_line_clip_run_model_default(config, jobs):
    run = config["runs"]["demo"]

    def steps():
        return jobs()["demo.generate.000"].items[0].options["steps"]

    del config["models"]["small"]["options"]
    assert steps() == 40
    config["models"]["small"]["options"] = {"steps": 30}
    assert steps() == 30
    run["options"]["steps"] = 20
    assert steps() == 20
    run["clips"][0]["steps"] = "10"  # a cell of a CSV file is text
    assert steps() == 10
    config["options"] = {"steps": "5"}  # so is what --config brings
    assert steps() == 5


def test_defaults_depend_on_the_variant(config, jobs):
    generate, decode = jobs()["demo.generate.000"].items[0].options, jobs()["demo.decode.000"].items[0].options
    assert (generate["shift"], generate["boundary_ratio"], decode["fps"]) == (5.0, None, 24.0)
    config["runs"]["demo"]["model"] = "big"
    config["runs"]["demo"]["options"]["size"] = "832*480"
    generate, decode = jobs()["demo.generate.000"].items[0].options, jobs()["demo.decode.000"].items[0].options
    assert (generate["shift"], generate["boundary_ratio"], decode["fps"]) == (3.0, 0.9, 16.0)


@pytest.mark.parametrize("model, rule", [("big", (16, "independent")), ("small", (32, "joint"))])
@pytest.mark.parametrize("recipe", ["v2v", "chain"])
def test_an_area_follows_the_rule_of_the_variant(config, jobs, recipe, model, rule):
    config["runs"]["demo"] |= {"model": model, "recipe": recipe}
    options = jobs()["demo.extract_frames.000"].items[0].options
    assert (options["multiple"], options["area_rule"]) == rule


def test_a_seed_is_drawn_once_and_kept(config):
    del config["runs"]["demo"]["options"]
    first = plan.load(config, 1)
    first.write()
    again = plan.load(config, 1)
    seeds = [planned.jobs[3].items[0].options["seed"] for planned in (first, again)]
    assert seeds[0] == seeds[1]
    assert yaml.safe_load(Path("results/demo/config.yaml").read_text())["runs"]["demo"]["options"]["seed"] == seeds[0]


def test_the_resolved_config_makes_the_same_items(config):
    config["runs"]["demo"]["clips"][0]["steps"] = 3
    planned = plan.load(config, 1)
    planned.write()
    resolved = yaml.safe_load(Path("results/demo/config.yaml").read_text())
    again = plan.load(resolved, 1)
    assert [job.items for job in again.jobs] == [job.items for job in planned.jobs]


def test_clips_added_later_open_new_shards(config):
    run = config["runs"]["demo"]
    run["clips"] = [{"video": f"clip{n:02d}.mp4"} for n in range(20)]
    planned = plan.load(config, 2)
    planned.write()
    before = {job.name: job.items for job in planned.jobs}
    run["clips"] = [{"video": "another.mp4"}, *run["clips"]]
    after = {job.name: job.items for job in plan.load(config, 8).jobs}
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys())[0] == "demo.caption_vlm.002"


def test_planning_writes_nothing(config, tmp_path):
    plan.load(config, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_holds_all_that_the_shell_does_not(config):
    config["runs"]["demo"]["clips"] = [{"id": "x", "video": "$(touch pwned) 'a'\n.mp4", "prompt": 'say "{it}"; rm -rf ~'}]
    planned = plan.load(config, 1)
    planned.write()
    commands = [job.command(1) for job in [*planned.jobs, *planned.films.values()]]
    assert not any("pwned" in command or "rm -rf" in command for command in commands)
    manifest = json.loads(Path("results/demo/steps/manifests/demo.caption_vlm.000.jsonl").read_text())
    assert manifest["video"] == "$(touch pwned) 'a'\n.mp4"
    assert manifest["prompt"] == 'say "{it}"; rm -rf ~'


def make_film(planned, **sources):
    """A film as if it had been made of `sources`, files by their content, and nothing else of the run."""
    (film,) = planned.films.values()
    output = Path(film.outputs[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("a film")
    content = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in {**sources, "a film": "a film"}.items()}
    digests = {output.name: content.pop("a film")}
    write_made(output, Made.of(output, film.items[0].fingerprint, list(content.items()), digests))


@pytest.mark.parametrize("name", ["a.mp4", "{x}.mp4", "new\nline.mp4"])
def test_a_film_is_current_by_the_content_of_its_sources(config, name):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": name, "prompt": "p"}]
    Path(name).write_text("one")
    make_film(plan.load(config, 1), **{name: "one"})
    assert not plan.load(config, 1).films
    assert plan.load(config, 1, whole=True).films  # for those who look at what was made
    Path(name).write_text("two")
    assert [job.stage.name for job in plan.load(config, 1).jobs][0] == "extract_frames"
    Path(name).write_text("one")
    assert not plan.load(config, 1).jobs
    Path(name).unlink()
    planned = plan.load(config, 1)
    assert not planned.films and "is not there; results/demo/a.mp4, which was made of it, stays" in planned.warnings[0]


def test_a_source_that_was_never_there_is_not_taken_for_one_that_is_gone(config):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "a.mp4", "prompt": "p"}]
    Path("a.mp4").write_text("one")
    make_film(plan.load(config, 1), **{"a.mp4": "one"})
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "typo.mp4", "prompt": "p"}]
    assert plan.load(config, 1).films
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "a.mp4", "prompt": "p"}]
    Path("a.mp4").unlink()
    Path("a.mp4").mkdir()
    assert plan.load(config, 1).films


@pytest.mark.parametrize(
    "record",
    [
        *("", "{", "[]", "null", "[" * 9999, '{"fingerprint": 1}', '{"fingerprint": "x", "sources": [], "files": {}}'),
        '{"fingerprint": "x", "sources": [], "files": {"a.mp4": [Infinity, 0, "x"]}}',
        '{"fingerprint": "x", "sources": [["a", "b"]], "files": {"a.mp4": [1, 0, "x"], "x\\u0000": [1, 0, "x"]}}',
        '{"fingerprint": "x", "sources": "abc", "files": {"a.mp4": 3}}',
    ],
)
def test_a_record_that_is_none_makes_the_film_anew(config, record):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "a.mp4", "prompt": "p"}]
    Path("a.mp4").write_text("one")
    planned = plan.load(config, 1)
    make_film(planned, **{"a.mp4": "one"})
    fingerprint = next(iter(planned.films.values())).items[0].fingerprint
    made_path(Path("results/demo/a.mp4")).write_text(record.replace('"x", "sources"', f'"{fingerprint}", "sources"'))
    assert plan.load(config, 1).films


def test_weights_behind_a_link_count(config):
    config["models"]["big"]["path"] = "weights"
    config["runs"]["demo"] |= {"model": "big", "clips": [{"id": "a", "video": "a.mp4", "prompt": "p"}]}
    Path("a.mp4").write_text("one")
    Path("weights").mkdir()
    Path("elsewhere").mkdir()
    Path("weights/transformer").symlink_to("../elsewhere")
    Path("weights/round").symlink_to(".")  # it leads in a circle
    Path("elsewhere/model").write_text("one")
    make_film(plan.load(config, 1), **{"a.mp4": "one"})
    assert not plan.load(config, 1).films
    times = Path("elsewhere/model").stat()
    Path("elsewhere/model").write_text("two")
    os.utime("elsewhere/model", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert plan.load(config, 1).films


def test_what_is_to_be_made_again_has_to_be_known(config):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "a.mp4", "prompt": "p"}]
    Path("a.mp4").write_text("one")
    make_film(plan.load(config, 1), **{"a.mp4": "one"})
    for name in ("all", "demo", "results/demo/a.mp4", "./results/demo/a.mp4", str(Path("results/demo/a.mp4").absolute())):
        assert plan.load({**config, "again": [name]}, 1).films, name
    assert [job.stage.name for job in plan.load({**config, "again": ["demo.decode.000"]}, 1).jobs][-1] == "decode"
    for name in ("demo.nothing.000", "results/demo/b.mp4", "films/a"):
        with pytest.raises(UsageError, match=f"again names '{name}', which no run makes"):
            plan.load({**config, "again": [name]}, 1)


def test_while_another_run_is_there_a_plan_takes_none_of_its_marks(config, monkeypatch):
    monkeypatch.setenv("KINEMAKE_MARKS", "")
    Path("results").mkdir()
    planned = plan.load(config, 1)
    mark = Path(planned.jobs[0].mark)
    mark.parent.mkdir(parents=True)
    mark.touch()
    with open("results/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        planned.begin()
        assert mark.exists() and not Path(planned.jobs[0].mark).exists()
        assert planned.targets["demo"][0] == planned.films["results/demo/a.mp4"].mark
    monkeypatch.setenv("KINEMAKE_MARKS", "")
    planned.begin()
    assert not mark.exists()


def test_sources_that_change_places_make_another_film(config):
    config["models"]["picture"] = {"family": "dynamicrafter", "variant": "512_interp", "path": "weights/picture"}
    run = {"recipe": "dynamicrafter", "model": "picture", "options": {"seed": 1}}
    config["runs"]["demo"] = {**run, "clips": [{"id": "a", "image": "1.png", "prompt": "p", "last_image": "2.png"}]}
    Path("1.png").write_text("one")
    Path("2.png").write_text("two")
    make_film(plan.load(config, 1), **{"1.png": "one", "2.png": "two"})
    assert not plan.load(config, 1).films
    Path("1.png").write_text("two")
    Path("2.png").write_text("one")
    assert plan.load(config, 1).films
    config["runs"]["demo"]["clips"][0] |= {"image": "2.png", "last_image": "1.png"}
    assert not plan.load(config, 1).films


def test_a_model_that_is_too_large_for_a_gpu_gets_more_to_generate_and_nothing_else_changes(config, jobs):
    before = fingerprints(config)
    config["models"]["small"]["options"]["gpus"] = 2
    made = jobs()
    assert {name: made[f"demo.{name}.000"].gpu for name in ("encode", "generate", "decode")} == {
        "encode": 1,
        "generate": 2,
        "decode": 1,
    }
    assert made["demo.generate.000"].items[0].options["gpus"] == 2
    after = fingerprints(config)
    assert {name for name in before if before[name] != after[name]} == set()


def test_captions_that_are_all_given_take_no_gpu(config, jobs):
    config["runs"]["demo"]["clips"] = [{"video": "a.mp4", "prompt": "p"}]
    made = jobs()
    assert (made["demo.caption_vlm.000"].gpu, made["demo.encode.000"].gpu, made["films/a"].gpu) == (0, 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "medium"}, "model of run demo is 'medium': declared models are big, small, eye"),
        ({"model": "eye"}, "model of run demo is eye, of family vlm: name a model of another family"),
        ({"name": "film.mp4"}, "would be made for .*: use {clip} in the name template"),
        ({"name": "{nonsense}.mp4"}, "name of run demo is '{nonsense}.mp4': it has the field 'nonsense', known are clip"),
        ({"name": "../{clip}.mp4"}, "a name stays inside the run's folder"),
        (
            {"options": {"size": "720*1280"}},
            "clip a of run demo: size 720\\*1280 is not one of this model's: choose 1280\\*704",
        ),
        ({"options": {"frame_num": 80}}, "option frame_num is 80: it must be 4n\\+1, for example 81"),
        ({"options": {"guidance_scale_2": 3}}, "guidance_scale_2 is 3.0 and the 5B has one expert"),
        ({"options": {"steps": "many"}}, "option steps is 'many': it must be of type integer"),
        ({"captioner": None}, "captioner is None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_said_before_anything_runs(config, change, message):
    config["runs"]["demo"].update(change)
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


def test_no_prompt_and_no_captioner_is_refused(config):
    del config["runs"]["demo"]["captioner"]
    with pytest.raises(UsageError, match="clip a of run demo has no prompt and the run no captioner"):
        plan.load(config, 1)


def test_a_model_needs_the_variant_that_its_family_has_where_no_folder_tells_it(config):
    del config["models"]["big"]["variant"]
    plan.load(config, 1)  # its folder is not here, and no run uses it
    config["runs"]["demo"]["model"] = "big"
    with pytest.raises(UsageError, match="the weights of model big are not at weights/big: put them there or mend the path"):
        plan.load(config, 1)
    config["models"]["big"] = {"family": "wan", "hub": "us/big"}
    with pytest.raises(UsageError, match="model big of family wan has the variant '': set variant to one of 14b, 5b"):
        plan.load(config, 1)


def test_an_option_that_the_recipe_does_not_have_is_an_error(config):
    config["runs"]["demo"]["options"] = {"links": 3}
    with pytest.raises(UsageError, match="run demo sets links: recipe v2v and its models have no such option"):
        plan.load(config, 1)


@pytest.mark.parametrize(
    ("model", "clips", "message"),
    [
        ("small", [{"id": "a", "video": "a.mp4"}], "clip a of run demo has no prompt: recipe text2video needs one"),
        ("big", [{"prompt": "a kite"}], "model big of run demo needs a first frame"),
        ("eye", [{"prompt": "a kite"}], "model of run demo is eye, of family vlm"),
    ],
)
def test_text_to_video_takes_prompts_and_a_model_that_needs_no_picture(config, model, clips, message):
    config["runs"]["demo"] = {"recipe": "text2video", "clips": clips, "model": model}
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


OTHER_VALUES = {
    "full_above": 0.5,
    "frame_size": 48,
    "num_frames": 24,
    "size": "704*1280",
    "link_name": "{link}_{clip}.mp4",
    "frame_num": 17,
    "guidance_scale_2": None,
    "boundary_ratio": None,
    "lora_2": None,
    "denoising_step_list": [1000, 500],
    "num_output_frames": 12,
    "num_frame_per_block": 4,
    "eta": 0.5,
    "guidance_rescale": 0.5,
    "loop": None,  # needs variant 512_interp, as last_image does: tests/plan/test_dynamicrafter.py
    "last_image": None,
    "switch_frame_indices": None,  # needs prompts beside it: tests/plan/test_longlive.py
}


def other_value(option):
    """A value that is not the option's default; None where the 5b has no use for the option."""
    if option.name in OTHER_VALUES:
        return OTHER_VALUES[option.name]
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    return {bool: option.default is False, int: 7, float: 7.0, str: "other"}[option.type]


@pytest.mark.parametrize("place", ["model", "run", "clip", "command line"])
@pytest.mark.parametrize("name", sorted(all_options()))
def test_every_option_counts_wherever_it_is_given(config, name, place):
    """In one place at a time, each option that a config takes changes what the stages are told to do."""
    option = all_options()[name]
    value = other_value(option)
    if value is None:
        return
    run = config["runs"]["demo"] | {"clips": [{"video": "a.mp4"}], "options": {"seed": 1}}
    run["recipe"] = "chain" if name in ("links", "prompt_mode", "link_name") else "v2v"
    config["models"]["small"]["options"] = {}
    if name in {option.name for option in ALL["text2video"].options} - {option.name for option in ALL["wan"].options}:
        config["models"]["small"] = {"family": "text2video", "path": "weights/unet"}
        run |= {"recipe": "text2video", "clips": [{"prompt": "a kite"}]}
        del run["captioner"]
    of_longlive = {option.name for option in (*ALL["longlive"].options, *RECIPES["longlive"].OPTIONS)}
    if name in of_longlive - {option.name for option in (*ALL["wan"].options, *ALL["text2video"].options)}:
        config["models"]["small"] = {"family": "longlive", "path": "weights/long"}
        run |= {"recipe": "longlive", "clips": [{"video": "a.mp4", "prompt": "a kite"}]}
    of_fresco = {option.name for option in (*ALL["fresco"].options, *RECIPES["fresco"].OPTIONS)} | MOVING
    if name in of_fresco - {option.name for option in (*ALL["wan"].options, *ALL["text2video"].options)}:
        config["models"]["small"] = {"family": "fresco", "path": "weights/sd"}
        run |= {"recipe": "fresco", "clips": [{"video": "a.mp4", "prompt": "a kite"}]}

    families = (ALL[family].options for family in ("wan", "text2video", "longlive", "media"))
    if name in {option.name for option in ALL["dynamicrafter"].options} - {o.name for options in families for o in options}:
        config["models"]["small"] = {"family": "dynamicrafter", "variant": "256", "path": "weights/picture"}
        run |= {"recipe": "dynamicrafter", "clips": [{"image": "a.png", "prompt": "a kite"}]}

    def told():
        config["runs"]["demo"] = run
        planned = plan.load(config, 1)
        return [item.line() for job in [*planned.jobs, *planned.films.values()] for item in job.items]

    before = told()
    vlm = name in {option.name for option in ALL["vlm"].options} - {"dtype"}
    if name == "seed":
        run["options"] = {}
    {
        "model": config["models"]["eye" if vlm else "small"].setdefault("options", {}),
        "run": run["options"],
        "clip": run["clips"][0],
        "command line": config.setdefault("options", {}),
    }[place][name] = value
    assert told() != before


@pytest.mark.parametrize("winner", ["command line", "clip", "run"])
def test_a_prompt_follows_the_same_order(config, winner):
    order = ["command line", "clip", "run"]
    places = {"command line": {}, "clip": {"video": "a.mp4"}, "run": {"seed": 1}}
    config["options"], config["runs"]["demo"]["clips"] = places["command line"], [places["clip"]]
    config["runs"]["demo"]["options"] = places["run"]
    del config["runs"]["demo"]["captioner"]
    for place in order[order.index(winner) :]:
        places[place]["prompt"] = f"of the {place}"
    jobs = {job.name: job for job in plan.load(config, 1).jobs}
    assert jobs["demo.caption_vlm.000"].items[0].options["prompt"] == f"of the {winner}"
    assert jobs["demo.encode.000"].items[0].options["prompt"] == ""


def test_new_weights_of_a_lora_under_the_same_path_are_a_change(config):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "a.mp4", "prompt": "p"}]
    config["runs"]["demo"]["options"]["lora"] = "style.safetensors"
    sources = {"a.mp4": "video", "style.safetensors": "one"}
    for path, text in sources.items():
        Path(path).write_text(text)
    make_film(plan.load(config, 1), **sources)
    assert not plan.load(config, 1).films
    Path("style.safetensors").write_text("three")
    assert plan.load(config, 1).films


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"size": "1280"}}, "size '1280' is not WIDTH\\*HEIGHT: write it like"),
        ({"name": "{clip.mp4"}, "name of run demo is '{clip.mp4'"),
        ({"name": "plan.mp4", "clips": [{"video": "a.mp4"}]}, "gives clip a the name 'plan.mp4': a name stays inside"),
        ({"clips": [{"video": "a.mp4", "prompts": ["p", "q"]}]}, "clip a of run demo has 2 prompts: v2v takes one"),
        ({"options": {"frame_num": 1, "source_first": True}}, "has frame_num 1: a clip that is joined needs 5 or more"),
        ({"options": {"select": "all"}}, "config.runs.demo.options has the unknown key 'select'"),
    ],
    ids=["size", "braces", "reserved", "prompts", "seam", "recipe's own"],
)
def test_what_would_fail_late_is_said_at_once(config, change, message):
    config["runs"]["demo"].update(change)
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


def test_the_resolved_config_states_the_seed_that_is_used(config):
    planned = plan.load(config, 1)
    planned.write()
    assert yaml.safe_load(Path("results/demo/config.yaml").read_text())["runs"]["demo"]["options"]["seed"] == 7
