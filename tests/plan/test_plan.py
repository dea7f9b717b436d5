"""Which jobs a config plans, and which jobs a change outdates."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from stages import plan
from stages.plan import schema
from stages.plan.families import ALL_FAMILIES
from stages.plan.recipes import RECIPES
from stages.plan.schema import all_options
from stages.runtime.errors import JobError, UsageError
from stages.runtime.options import option
from stages.runtime.result_record import ResultRecord, record_path, write_record
from stages.runtime.stages import NESTED_EXTRAS

ROOT = Path(__file__).parents[2]

# options of stages without a model that only fresco has
OF_CHAIN = RECIPES["chain"].OPTIONS.declared
KEYFRAME_OPTIONS = {"min_interval", "max_interval"} | {
    option.name for option in ALL_FAMILIES["media"].options_of("propagate")
}


def fingerprints(config, workers=1):
    jobs = plan.load(config, workers).jobs
    return {job.name: [(item.output, item.fingerprint) for item in job.items] for job in jobs}


def changed_jobs(config, workers=1, **change):
    """Names of the jobs whose fingerprints differ after a change of the run demo."""
    before = fingerprints(config, workers)
    config["runs"]["demo"].update(change)
    after = fingerprints(config, workers)
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_v2v_plans_its_six_stages(jobs):
    by_name = jobs()
    work = "results/demo/steps"
    assert {name: (job.outputs, job.needs) for name, job in by_name.items()} == {
        "demo.extract_frames.000": ([f"{work}/a/frames.json", f"{work}/b/frames.json"], set()),
        "demo.caption_vlm.000": ([f"{work}/a/caption.json", f"{work}/b/caption.json"], set()),
        "demo.encode.000": (
            [f"{work}/a/encoded.safetensors", f"{work}/b/encoded.safetensors"],
            {"demo.extract_frames.000", "demo.caption_vlm.000"},
        ),
        "demo.generate.000": ([f"{work}/a/latents.safetensors", f"{work}/b/latents.safetensors"], {"demo.encode.000"}),
        "demo.decode.000": ([f"{work}/a/clip.json", f"{work}/b/clip.json"], {"demo.generate.000"}),
        "demo.concat.000": (["results/demo/a.mp4", "results/demo/b.mp4"], {"demo.decode.000"}),
    }
    weights = {"caption_vlm": "eye", "encode": "small", "generate": "small", "decode": "small"}
    for stage in ("extract_frames", *weights):
        loaded = [f"results/weights/{weights[stage]}.json"] if stage in weights else []
        before = [by_name[name].mark for name in sorted(by_name[f"demo.{stage}.000"].needs)]
        assert by_name[f"demo.{stage}.000"].inputs == before + loaded


def test_chain_passes_the_last_frame_of_each_link_to_the_next(config, jobs):
    config["runs"]["demo"] |= {"recipe": "chain", "fuse": False, "clips": [{"video": "a.mp4"}], "model": "big"}
    config["runs"]["demo"]["options"]["links"] = 3
    by_name = jobs()
    link = "results/demo/a/video_{:02d}_a.json".format
    assert [job.outputs[0] for name, job in by_name.items() if "decode" in name] == [link(1), link(2), link(3)]
    assert by_name["demo.caption_vlm.link02.000"].items[0].inputs == {"video": link(1)}
    assert by_name["demo.caption_vlm.link02.000"].needs == {"demo.decode.link01.000"}
    assert by_name["demo.encode.link03.000"].needs == {"demo.decode.link02.000", "demo.caption_vlm.link03.000"}
    assert [by_name[f"demo.generate.link0{n}.000"].items[0].options["seed"] for n in (1, 2, 3)] == [7, 8, 9]
    assert by_name["demo.concat.000"].items[0].inputs == {"clips": [link(1), link(2), link(3)]}
    assert by_name["demo.concat.000"].needs == {f"demo.decode.link0{n}.000" for n in (1, 2, 3)}
    assert by_name["demo.concat.000"].items[0].options["names"] == ["a.mp4"] + [f"video_0{n}_a.mp4" for n in (1, 2, 3)]
    assert by_name["demo.caption_vlm.link01.000"].items[0].options["prefix"] == "continue video"


def test_chain_has_twelve_links_by_default(config, jobs):
    config["runs"]["demo"] |= {"recipe": "chain", "fuse": False, "clips": [{"video": "a.mp4"}]}
    assert sum("generate" in name for name in jobs()) == 12


def test_more_links_of_a_chain_keep_the_fingerprints_of_earlier_ones(config):
    config["runs"]["demo"] |= {"recipe": "chain", "fuse": False, "options": {"seed": 7, "links": 4}}
    outdated = changed_jobs(config, options={"seed": 7, "links": 6})
    stages = ("caption_vlm", "encode", "generate", "decode")
    new = {f"demo.{stage}.link0{n}.000" for stage in stages for n in (5, 6)}
    assert outdated == new | {"demo.concat.000"}


def test_chain_can_use_the_first_caption_for_all_links(config, jobs):
    config["runs"]["demo"] |= {"recipe": "chain", "fuse": False, "options": {"links": 3, "prompt_mode": "first"}}
    by_name = jobs()
    assert [name for name in by_name if "caption" in name] == ["demo.caption_vlm.link01.000"]
    assert by_name["demo.encode.link03.000"].items[0].inputs["caption"] == "results/demo/steps/a/link01/caption.json"


@pytest.mark.parametrize(("clip", "prompts"), [({"prompt": "p"}, ["p"]), ({"prompts": ["p", "q"]}, ["p", "q"])])
def test_chain_with_given_prompts_needs_no_captioner(config, jobs, clip, prompts):
    config["runs"]["demo"] |= {
        "recipe": "chain",
        "fuse": False,
        "clips": [{"video": "a.mp4", **clip}],
        "options": {"links": 2},
    }
    del config["runs"]["demo"]["captioner"]
    captions = [job for name, job in jobs().items() if "caption" in name]
    assert [job.items[0].options["prompt"] for job in captions] == prompts
    assert {job.gpu for job in captions} == {0}


def test_chain_refuses_a_wrong_number_of_prompts(config):
    config["runs"]["demo"] |= {"recipe": "chain", "clips": [{"video": "a.mp4", "prompts": ["p", "q"]}]}
    with pytest.raises(UsageError, match="clip a of run demo has 2 prompts for 12 links: give one for all, or one for each"):
        plan.load(config, 1)


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"steps": 5}, {"generate", "decode", "concat"}),
        ({"seed": 8}, {"generate", "decode", "concat"}),
        ({"fps": 12}, {"decode", "concat"}),
        ({"frame_num": 17}, {"encode", "generate", "decode", "concat"}),
        ({"instruction": "What is it?"}, {"caption_vlm", "encode", "generate", "decode", "concat"}),
        ({"size": "704*1280"}, {"extract_frames", "encode", "generate", "decode", "concat"}),
        ({"offload": "block_level"}, set()),
        ({"checkpoint_every": 3}, set()),
    ],
    ids=lambda value: min(value, default="nothing"),
)
def test_a_changed_option_changes_the_fingerprints_of_its_stage_and_later_ones(config, options, stages):
    assert changed_jobs(config, options={"seed": 7, **options}) == {f"demo.{stage}.000" for stage in stages}


def test_a_changed_option_of_one_clip_changes_only_its_shard(config):
    config["runs"]["demo"]["clips"] = [{"video": f"{name}.mp4"} for name in "abcd"]
    clips = [{"video": "a.mp4", "steps": 3}, *config["runs"]["demo"]["clips"][1:]]
    stages = ("generate", "decode", "concat")
    assert changed_jobs(config, workers=4, clips=clips) == {f"demo.{stage}.000" for stage in stages}


def test_option_precedence_is_command_line_clip_run_model_default(config, jobs):
    run = config["runs"]["demo"]

    def steps():
        return jobs()["demo.generate.000"].items[0].options["num_inference_steps"]

    del config["models"]["small"]["options"]
    assert steps() == 40
    config["models"]["small"]["options"] = {"steps": 30}
    assert steps() == 30
    run["options"]["steps"] = 20
    assert steps() == 20
    run["clips"][0]["steps"] = "10"  # as a cell of a CSV file
    assert steps() == 10
    config["options"] = {"steps": "5"}  # as from --config
    assert steps() == 5


def test_option_defaults_depend_on_the_model_variant(config, jobs):
    generate, decode = jobs()["demo.generate.000"].items[0].options, jobs()["demo.decode.000"].items[0].options
    assert (generate["shift"], generate["boundary_ratio"], decode["fps"]) == (5.0, None, 24.0)
    config["runs"]["demo"]["model"] = "big"
    config["runs"]["demo"]["options"]["size"] = "832*480"
    generate, decode = jobs()["demo.generate.000"].items[0].options, jobs()["demo.decode.000"].items[0].options
    assert (generate["shift"], generate["boundary_ratio"], decode["fps"]) == (3.0, 0.9, 16.0)


@pytest.mark.parametrize("model, rule", [("big", (16, "independent")), ("small", (32, "joint"))])
@pytest.mark.parametrize("recipe", ["v2v", "chain"])
def test_the_area_rule_depends_on_the_model_variant(config, jobs, recipe, model, rule):
    config["runs"]["demo"] |= {"model": model, "recipe": recipe, "fuse": False}
    options = jobs()["demo.extract_frames.000"].items[0].options
    assert (options["fit"], options["multiple"], options["area_rule"]) == ("area", *rule)
    config["runs"]["demo"]["options"]["fit"] = "crop"
    assert jobs()["demo.extract_frames.000"].items[0].options["fit"] == "crop"


def test_a_drawn_seed_is_kept_in_the_resolved_config(config):
    del config["runs"]["demo"]["options"]
    first = plan.load(config, 1)
    first.write()
    second = plan.load(config, 1)
    seeds = [planned.jobs[3].items[0].options["seed"] for planned in (first, second)]
    assert seeds[0] == seeds[1]
    assert yaml.safe_load(Path("results/demo/config.yaml").read_text())["runs"]["demo"]["options"]["seed"] == seeds[0]


def test_the_resolved_config_plans_the_same_items(config):
    config["runs"]["demo"]["clips"][0]["steps"] = 3
    planned = plan.load(config, 1)
    planned.write()
    resolved = yaml.safe_load(Path("results/demo/config.yaml").read_text())
    second = plan.load(resolved, 1)
    assert [job.items for job in second.jobs] == [job.items for job in planned.jobs]


def test_clips_added_later_get_new_shards(config):
    run = config["runs"]["demo"]
    run["clips"] = [{"video": f"clip{n:02d}.mp4"} for n in range(20)]
    planned = plan.load(config, 2)
    planned.write()
    before = {job.name: job.items for job in planned.jobs}
    run["clips"] = [{"video": "another.mp4"}, *run["clips"]]
    after = {job.name: job.items for job in plan.load(config, 2).jobs}
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys())[0] == "demo.caption_vlm.002"


@pytest.mark.parametrize(("name", "shards"), [("{clip}.mp4", 4), ("rank{rank}-{clip}.mp4", 1)])
def test_more_workers_later_share_the_unfinished_clips(config, name, shards):
    """Shards stay as they are if the name of a film has the number of its shard."""
    run = config["runs"]["demo"] | {"clips": [{"video": f"clip{n}.mp4"} for n in range(8)], "name": name}
    config["runs"]["demo"] = run
    plan.load(config, 1).write()
    planned = plan.load(config, 4)
    generate = [part for part in planned.parts if part.stage.name == "generate"]
    assert len(generate) == shards and sum(len(part.items) for part in generate) == 8
    of_job = plan.load(config, 4, whole=True)  # the plan of a job follows the plan file of the main process
    assert len([part for part in of_job.parts if part.stage.name == "generate"]) == 1


def test_planning_writes_nothing(config, tmp_path):
    plan.load(config, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


def test_prompts_and_paths_are_in_the_manifest_and_not_in_the_command(config):
    config["runs"]["demo"]["clips"] = [{"id": "x", "video": "$(touch pwned) 'a'\n.mp4", "prompt": 'say "{it}"; rm -rf ~'}]
    planned = plan.load(config, 1)
    planned.write()
    commands = [job.command(1) for job in planned.jobs]
    assert not any("pwned" in command or "rm -rf" in command for command in commands)
    manifest = json.loads(Path("results/demo/steps/manifests/demo.caption_vlm.000.jsonl").read_text())
    assert manifest["video"] == "$(touch pwned) 'a'\n.mp4"
    assert manifest["prompt"] == 'say "{it}"; rm -rf ~'


def make_film(planned, **sources):
    """Write the film of a plan with a record of its `sources`, contents by path, and no other file of the run."""
    (film,) = planned.films.values()
    output = Path(film.outputs[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("a film")
    content = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in {**sources, "a film": "a film"}.items()}
    digests = {output.name: content.pop("a film")}
    models = {model.family: model for model in planned.runs[0].run.models.values() if model and model.family != "vlm"}
    weights = [(f"{model.name} for {stage}", digest) for model, stage, digest in digest_weights(models.values())]
    write_record(output, ResultRecord.of(output, film.items[0].fingerprint, list(content.items()), weights, digests))


def digest_weights(models):
    """Yield each model, each stage that loads it, and the digest of the files that it reads; '' where they are missing."""
    for model in models:
        for stage in ("encode", "generate", "decode"):
            try:
                yield model, stage, model.digest(ALL_FAMILIES[model.family].stages[stage].weights)
            except JobError:
                yield model, stage, ""


@pytest.mark.parametrize("name", ["a.mp4", "{x}.mp4", "new\nline.mp4"])
def test_a_film_is_current_while_the_content_of_its_sources_is(config, name):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": name, "prompt": "p"}]
    Path(name).write_text("one")
    make_film(plan.load(config, 1), **{name: "one"})
    assert not plan.load(config, 1).films
    assert plan.load(config, 1, whole=True).films  # for reports on finished films
    Path(name).write_text("two")
    assert [part.stage.name for part in plan.load(config, 1).parts][0] == "extract_frames"
    Path(name).write_text("one")
    assert not plan.load(config, 1).jobs
    Path(name).unlink()
    planned = plan.load(config, 1)
    assert not planned.films and "is not there; results/demo/a.mp4, which was made of it, stays" in planned.warnings[0]


def test_a_source_that_never_existed_makes_the_film_outdated(config):
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
def test_a_damaged_result_record_makes_the_film_outdated(config, record):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "a.mp4", "prompt": "p"}]
    Path("a.mp4").write_text("one")
    planned = plan.load(config, 1)
    make_film(planned, **{"a.mp4": "one"})
    fingerprint = next(iter(planned.films.values())).items[0].fingerprint
    record_path(Path("results/demo/a.mp4")).write_text(record.replace('"x", "sources"', f'"{fingerprint}", "sources"'))
    assert plan.load(config, 1).films


def test_a_film_is_current_while_the_content_of_the_weights_is(config):
    """Links are followed. File times, the path of the folder and the name of the model do not count."""
    config["models"]["big"]["path"] = "weights"
    config["runs"]["demo"] |= {"model": "big", "clips": [{"id": "a", "video": "a.mp4", "prompt": "p"}]}
    Path("a.mp4").write_text("one")
    Path("weights").mkdir()
    Path("elsewhere").mkdir()
    Path("weights/transformer").symlink_to("../elsewhere")
    Path("weights/round").symlink_to(".")  # a circular link
    Path("elsewhere/model").write_text("one")
    make_film(plan.load(config, 1), **{"a.mp4": "one"})
    assert not plan.load(config, 1).films
    times = Path("elsewhere/model").stat()
    Path("elsewhere/model").write_text("two")
    os.utime("elsewhere/model", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert plan.load(config, 1).films
    Path("elsewhere/model").write_text("one")
    assert not plan.load(config, 1).films
    shutil.copytree("weights", "copied", symlinks=True)
    config["models"]["copy"] = {**config["models"].pop("big"), "path": str(Path("copied").absolute())}
    config["runs"]["demo"]["model"] = "copy"
    assert not plan.load(config, 1).films
    Path("copied/transformer").unlink()
    assert not plan.load(config, 1).films  # missing weights do not outdate a film
    Path("copied/transformer").mkdir()
    Path("copied/transformer/model").write_text("two")
    assert plan.load(config, 1).films


def test_again_takes_only_names_that_a_run_has(config):
    config["runs"]["demo"]["clips"] = [{"id": "a", "video": "a.mp4", "prompt": "p"}]
    Path("a.mp4").write_text("one")
    make_film(plan.load(config, 1), **{"a.mp4": "one"})
    for name in ("all", "demo", "results/demo/a.mp4", "./results/demo/a.mp4", str(Path("results/demo/a.mp4").absolute())):
        assert plan.load({**config, "again": [name]}, 1).films, name
    again = plan.load({**config, "again": ["demo.decode.000"]}, 1)
    assert [part.stage.name for part in again.parts][-2:] == ["decode", "concat"]
    for name in ("demo.nothing.000", "results/demo/b.mp4", "concat"):
        with pytest.raises(UsageError, match=f"again names '{name}', which no run makes"):
            plan.load({**config, "again": [name]}, 1)


def test_begin_keeps_the_marks_of_another_running_run(config, monkeypatch):
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


def test_exchanged_sources_make_the_film_outdated(config):
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


def test_gpus_raises_the_gpus_of_generate_and_changes_no_fingerprint(config, jobs):
    before = fingerprints(config)
    config["models"]["small"]["options"]["gpus"] = 2
    by_name = jobs()
    assert {name: by_name[f"demo.{name}.000"].gpu for name in ("encode", "generate", "decode")} == {
        "encode": 1,
        "generate": 2,
        "decode": 1,
    }
    assert by_name["demo.generate.000"].items[0].options["gpus"] == 2
    after = fingerprints(config)
    assert {name for name in before if before[name] != after[name]} == set()


def test_a_job_requests_minutes_by_the_work_of_its_items(config, jobs):
    """The 14B's 40 steps with guidance at 1280*720, 81 frames: by Wan's published 13.2 s a pass of an H100, five times."""
    config["runs"]["demo"] |= {"model": "big"}
    options = config["runs"]["demo"]["options"]

    def minutes():
        (part,) = jobs()["demo.generate.000"].parts
        return part.minutes

    assert minutes() == pytest.approx(2 * 5 * 80 * 13.2 / 60, rel=0.03)  # of two clips
    assert [jobs()["demo.generate.000"].runtime(attempt) for attempt in (1, 2)] == [
        n * math.ceil(20 + minutes()) for n in (1, 2)
    ]
    options |= {"size": "832*480"}
    assert minutes() == pytest.approx(2 * 5 * 80 * 4.1 / 60, rel=0.03)
    options |= {"steps": 4, "guidance_scale": 1}
    assert minutes() == pytest.approx(2 * 5 * 4 * 4.1 / 60, rel=0.03)


def test_no_job_requests_more_minutes_than_the_config_allows(config, jobs):
    config["runs"]["demo"] |= {"clips": [{"id": f"c{n}", "video": "a.mp4", "prompt": "p"} for n in range(3000)]}
    by_name = jobs()
    assert len(by_name) <= 360 and max(job.runtime(3) for job in by_name.values()) == 24 * 60
    assert by_name["demo.extract_frames.000"].runtime(1) < 24 * 60
    config["resources"] = {"max_runtime": 600}
    assert max(job.runtime(3) for job in jobs().values()) == 600
    config["resources"] = {"generate": {"runtime": 3000}}
    assert jobs()["demo.generate.000"].runtime(1) == 3000  # a user's own request is not lowered
    assert jobs()["demo.decode.000"].runtime(3) == 24 * 60


def test_jobs_that_read_weights_or_encode_films_request_four_cores(config, jobs):
    config["resources"] = {"decode": {"cores": 8}}
    cores = {name.split(".")[1]: job.cores for name, job in jobs().items()}
    assert cores == {"extract_frames": 1, "caption_vlm": 4, "encode": 4, "generate": 4, "decode": 8, "concat": 4}


def test_caption_jobs_with_given_prompts_take_no_gpu(config, jobs):
    config["runs"]["demo"]["clips"] = [{"video": "a.mp4", "prompt": "p"}]
    by_name = jobs()
    assert (by_name["demo.caption_vlm.000"].gpu, by_name["demo.encode.000"].gpu, by_name["demo.concat.000"].gpu) == (0, 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "medium"}, "model of run demo is 'medium': declared models are big, small, eye"),
        (
            {"model": "eye"},
            "model of run demo is eye, of family vlm: name a model of another family: dynamicrafter or helios or wan",
        ),
        ({"name": "film.mp4"}, "would be made for .*: use {clip} in the name template"),
        ({"name": "{nonsense}.mp4"}, "name of run demo is '{nonsense}.mp4': it has the field 'nonsense', known are clip"),
        ({"name": "../{clip}.mp4"}, "a name stays inside the run's folder"),
        (
            {"options": {"size": "720*1280"}},
            "clip a of run demo: size 720\\*1280 is not one of this model's: choose 1280\\*704",
        ),
        ({"options": {"frame_num": 80}}, "option num_frames is 80: it must be 4n\\+1, for example 81"),
        ({"options": {"guidance_scale_2": 3}}, "guidance_scale_2 is 3.0 and the 5B has one expert"),
        ({"options": {"steps": "many"}}, "option num_inference_steps is 'many': it must be a whole number"),
        ({"captioner": None}, "captioner is None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_invalid_run_is_refused_when_planned(config, change, message):
    config["runs"]["demo"].update(change)
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


def test_a_clip_without_prompt_and_captioner_is_refused(config):
    del config["runs"]["demo"]["captioner"]
    with pytest.raises(UsageError, match="clip a of run demo has no prompt and the run no captioner"):
        plan.load(config, 1)


def test_a_model_without_a_folder_needs_a_valid_variant(config):
    del config["models"]["big"]["variant"]
    plan.load(config, 1)  # its folder is missing, and no run uses it
    config["runs"]["demo"]["model"] = "big"
    with pytest.raises(UsageError, match="the weights of model big are not at weights/big: put them there or mend the path"):
        plan.load(config, 1)
    config["models"]["big"] = {"family": "wan", "hub": "us/big"}
    with pytest.raises(UsageError, match="big of family wan has the variant '': set variant to one of 14b, 5b, 14b-t2v"):
        plan.load(config, 1)


def test_an_option_that_the_recipe_does_not_have_is_refused(config):
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
def test_text2video_needs_prompts_and_a_model_without_first_frame(config, model, clips, message):
    config["runs"]["demo"] = {"recipe": "text2video", "clips": clips, "model": model}
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


def test_v2v_needs_a_model_that_takes_a_first_frame(config):
    config["models"]["text"] = {"family": "wan", "variant": "14b-t2v", "hub": "Wan-AI/Wan2.2-T2V-A14B-Diffusers"}
    config["runs"]["demo"]["model"] = "text"
    for recipe in ("v2v", "chain"):
        config["runs"]["demo"]["recipe"] = recipe
        with pytest.raises(UsageError, match="model text of run demo takes no first frame: .*, or use recipe text2video"):
            plan.load(config, 1)


OTHER_VALUES = {
    "full_above": 0.5,
    "frame_size": 48,
    "num_frames": 25,
    "size": "704*1280",
    "link_name": "{link}_{clip}.mp4",
    "link_prompts": ["2: a kite"],
    "link_frames": ["2: 9"],
    "link_names": ["2: storm"],
    "link_sources": ["2: b.mp4"],
    "link_takes": ["2: 3"],
    "handover": None,  # needs known_latents beside it: tests/plan/test_handover.py
    "link_seeds": ["2: 9"],
    "pick": None,  # needs takes beside it, as picks does: tests/plan/test_takes.py
    "picks": None,
    "guidance_scale_2": None,
    "boundary_ratio": None,
    "lora_2": None,
    "denoising_step_list": [1000, 500],
    "num_output_frames": 12,
    "num_frame_per_block": 4,
    "eta": 0.5,
    "guidance_rescale": 0.5,
    "sampler": "euler",
    "sigmas": [1.0, 0.5],
    "timesteps": [1000, 500],
    "guidance_interval": [0.0, 0.5],
    "apg_eta": None,  # needs guider apg beside it, as the others of it do: tests/families/wan/test_guidance.py
    "apg_momentum": None,
    "apg_norm_threshold": None,
    "zero_init_steps": None,
    "parallel": None,
    "skip_layer_scale": None,
    "skip_layer_interval": None,
    "cache_threshold": None,  # needs step_cache beside it, as the others of it do: tests/families/wan/test_step_cache.py
    "mag_ratios": None,
    "mag_ratios_2": None,
    "cache_start": None,
    "cache_skips": None,
    "cache_interval": None,
    "cache_order": None,
    "loop": None,  # needs variant 512_interp, as last_image does: tests/plan/test_dynamicrafter.py
    "last_image": None,
    "history_sizes": [8, 2, 1],
    "image_noise_sigma": [0.0, 0.2],
    "video_noise_sigma": [0.0, 0.2],
    "pyramid_num_inference_steps_list": None,  # needs variant mid or distilled: tests/families/helios/test_stages.py
    "switch_frame_indices": None,  # needs prompts beside it: tests/plan/test_longlive.py
}


def other_value(option):
    """A value that is not the option's default; None if the 5b has no use for the option."""
    if option.name in OTHER_VALUES:
        return OTHER_VALUES[option.name]
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    return {bool: option.default is False, int: 7, float: 7.0, str: "other"}[option.type]


@pytest.mark.parametrize("place", ["model", "run", "clip", "command line"])
@pytest.mark.parametrize("name", sorted(all_options()))
def test_every_option_changes_the_items_wherever_it_is_set(config, name, place):
    """Each option of a config, set in one place at a time, changes the manifest lines."""
    option = all_options()[name]
    value = other_value(option)
    if value is None:
        return
    run = config["runs"]["demo"] | {"clips": [{"video": "a.mp4"}], "options": {"seed": 1}}
    run["recipe"] = "chain" if name in {option.name for option in OF_CHAIN} else "v2v"
    run["scores"] = ["reference"] if name == "reference" else []
    config["models"]["small"]["options"] = {}
    if name in {option.name for option in ALL_FAMILIES["text2video"].options} - {
        option.name for option in ALL_FAMILIES["wan"].options
    }:
        config["models"]["small"] = {"family": "text2video", "path": "weights/unet"}
        run |= {"recipe": "text2video", "clips": [{"prompt": "a kite"}]}
        del run["captioner"]
    of_longlive = {option.name for option in (*ALL_FAMILIES["longlive"].options, *RECIPES["longlive"].OPTIONS.declared)}
    of_longlive.discard("takes")
    if name in of_longlive - {option.name for option in (*ALL_FAMILIES["wan"].options, *ALL_FAMILIES["text2video"].options)}:
        config["models"]["small"] = {"family": "longlive", "path": "weights/long"}
        run |= {"recipe": "longlive", "clips": [{"video": "a.mp4", "prompt": "a kite"}]}
        run |= {"name": "{clip}_{model_type}.mp4"}  # shows option ema
    of_helios = {option.name for option in ALL_FAMILIES["helios"].options}
    others = (ALL_FAMILIES[family].options for family in ALL_FAMILIES if family != "helios")
    if name in of_helios - {option.name for options in others for option in options}:
        config["models"]["small"] = {"family": "helios", "variant": "base", "path": "weights/helios"}
    of_fresco = {option.name for option in (*ALL_FAMILIES["fresco"].options, *RECIPES["fresco"].OPTIONS.declared)} - {
        "takes"
    } | KEYFRAME_OPTIONS
    if name in of_fresco - {option.name for option in (*ALL_FAMILIES["wan"].options, *ALL_FAMILIES["text2video"].options)}:
        config["models"]["small"] = {"family": "fresco", "path": "weights/sd"}
        run |= {"recipe": "fresco", "clips": [{"video": "a.mp4", "prompt": "a kite"}]}

    families = (ALL_FAMILIES[family].options for family in ("wan", "text2video", "longlive", "media"))
    if name in {option.name for option in ALL_FAMILIES["dynamicrafter"].options} - {
        o.name for options in families for o in options
    }:
        config["models"]["small"] = {"family": "dynamicrafter", "variant": "256", "path": "weights/picture"}
        run |= {"recipe": "dynamicrafter", "clips": [{"image": "a.png", "prompt": "a kite"}]}

    others = (ALL_FAMILIES[family].options for family in ALL_FAMILIES if family != "vision")
    of_vision = name in {option.name for option in ALL_FAMILIES["vision"].options} - {
        o.name for options in others for o in options
    }
    if of_vision:  # its options are those of the model's declaration alone
        config["models"]["eyes"] = {"family": "vision", "variant": "clip", "path": "weights/eyes"}
        run["scores"] = ["eyes"]
        if place != "model":
            return

    def item_lines():
        config["runs"]["demo"] = run
        return [item.line() for job in plan.load(config, 1).jobs for item in job.items]

    before = item_lines()
    vlm = name in {option.name for option in ALL_FAMILIES["vlm"].options} - {"dtype", "batch_size"}  # of others too
    if name == "seed":
        run["options"] = {}
    {
        "model": config["models"]["eyes" if of_vision else "eye" if vlm else "small"].setdefault("options", {}),
        "run": run["options"],
        "clip": run["clips"][0],
        "command line": config.setdefault("options", {}),
    }[place][name] = value
    assert item_lines() != before


@pytest.mark.parametrize("winner", ["command line", "clip", "run"])
def test_prompt_precedence_is_command_line_clip_run(config, winner):
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


def test_a_changed_lora_file_makes_the_film_outdated(config):
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
        (
            {"options": {"frame_num": 1, "source_first": True}},
            "has num_frames 1: a clip that is joined needs more than one frame",
        ),
        ({"options": {"select": "all"}}, "config.runs.demo.options has the unknown key 'select'"),
    ],
    ids=["size", "braces", "reserved", "prompts", "seam", "recipe's own"],
)
def test_mistakes_that_would_fail_late_are_refused_when_planned(config, change, message):
    config["runs"]["demo"].update(change)
    with pytest.raises(UsageError, match=message):
        plan.load(config, 1)


def test_the_resolved_config_states_the_given_seed(config):
    planned = plan.load(config, 1)
    planned.write()
    assert yaml.safe_load(Path("results/demo/config.yaml").read_text())["runs"]["demo"]["options"]["seed"] == 7


def test_runs_that_read_the_results_of_each_other_are_refused(config):
    demo = config["runs"]["demo"]
    config["runs"]["demo"] = {**demo, "clips": [{"video": "results/other/a.mp4", "prompt": "p"}]}
    config["runs"]["other"] = {**demo, "clips": [{"video": "results/demo/a.mp4", "prompt": "p"}]}
    with pytest.raises(UsageError, match="the runs demo and other read each other's results: let one of them read other"):
        plan.load(config, 1)


@pytest.fixture
def fresh_schemas():
    """Clear the cached schemas before and after a test that changes the declarations."""
    cached = (
        schema.declarations,
        schema.all_options,
        schema.clip_schema,
        schema.config_schema,
        schema._validator,
        schema._options_by_alias,
    )
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_a_neutral_option_added_later_keeps_the_fingerprints(config, monkeypatch, request):
    before = fingerprints(config)
    request.getfixturevalue("fresh_schemas")
    wan = ALL_FAMILIES["wan"]

    class WithCache(wan.stages["generate"].options):
        step_cache: str = option("none", "Skip steps whose result hardly changes", neutral="none")

    generate = replace(wan.stages["generate"], options=WithCache)
    monkeypatch.setitem(ALL_FAMILIES, "wan", replace(wan, stages={**wan.stages, "generate": generate}))
    assert fingerprints(config) == before
    config["runs"]["demo"]["options"]["step_cache"] = "fast"
    after = fingerprints(config)
    changed = {name.split(".")[1] for name in before if before[name] != after[name]}
    assert changed == {"generate", "decode", "concat"}


CHAIN = {"recipe": "chain", "model": "big", "captioner": "eye", "options": {"seed": 7, "links": 2}, "scores": []}


def test_a_chain_is_one_job_per_shard_and_one_for_its_films(config):
    """The captions of one clip and the given prompts of another do not change the order of the steps."""
    clips = [{"video": "a.mp4", "prompt": "p"}, {"video": "b.mp4", "links": 3}]
    config["runs"]["demo"] = {**CHAIN, "clips": clips}
    planned = plan.load(config, 1)
    job, films = planned.jobs
    assert [part.step for part in job.parts] == [
        "extract_frames",
        *(f"{stage}.link{link:02d}" for link in (1, 2, 3) for stage in ("caption_vlm", "encode", "generate", "decode")),
    ]
    assert [len(part.items) for part in job.parts] == [2] * 5 + [1, 2, 2, 2] + [1] * 4
    assert job.gpu == 1 and job.image == "encode" and job.extra == "diffusion"
    assert job.command(1).startswith("fused --manifest results/demo/steps/manifests/demo.fused.000.jsonl ")
    assert films.needs == {"demo.fused.000"} and films.outputs == ["results/demo/a.mp4", "results/demo/b.mp4"]


def test_fuse_false_gives_a_job_per_stage_of_each_link_with_the_same_items(config):
    config["runs"]["demo"] = {**CHAIN, "clips": [{"video": "a.mp4"}]}
    fused = plan.load(config, 1)
    config["runs"]["demo"]["fuse"] = False
    plain = plan.load(config, 1)
    assert [job.name for job in plain.jobs] == [f"demo.{part.step}.000" for part in plain.parts]
    assert [part.items for part in plain.parts] == [part.items for part in fused.parts]
    assert not any(job.is_fused for job in plain.jobs)


def test_fuse_true_joins_the_steps_of_another_recipe_up_to_decode(config):
    config["runs"]["demo"]["fuse"] = True
    job, _ = plan.load(config, 1).jobs
    assert [part.step for part in job.parts] == ["extract_frames", "caption_vlm", "encode", "generate", "decode"]
    lines = [json.loads(line) for line in job.manifest_text.splitlines()]
    assert [line["step"] for line in lines] == [part.step for part in job.parts for _ in part.items]


def test_a_stage_of_a_fused_run_is_made_by_the_fused_job(config):
    config["runs"]["demo"]["fuse"] = True
    planned = plan.load(config, 1)
    job, _ = planned.jobs
    assert planned.targets["demo.generate"] == planned.targets["demo.encode"] == [job.mark]


def test_extras_that_a_fused_job_joins_include_one_another():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for inner, outer in pairwise(NESTED_EXTRAS):
        assert f"kinemake[{inner}]" in extras[outer]
