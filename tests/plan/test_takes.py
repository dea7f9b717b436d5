"""Takes of clips and of links, and files of picks: the items that they become."""

import json
from pathlib import Path

import pytest

from stages import plan
from stages.plan.clips import read_clips
from stages.plan.shards import CLIPS_PER_SHARD
from stages.runtime.errors import UsageError

ONE_CLIP = [{"id": "a", "video": "a.mp4"}]


@pytest.fixture
def run(config):
    """A run of one clip."""
    config["runs"]["demo"]["clips"] = ONE_CLIP
    return config["runs"]["demo"]


@pytest.fixture
def chain(run):
    """A run of a chain of two links."""
    run |= {"recipe": "chain", "fuse": False, "options": {"seed": 7, "links": 2}}
    return run


def items(config, workers=1):
    """All items of a plan, by output without the folder of the run."""
    jobs = plan.load(config, workers, whole=True).jobs
    found = [(item.output.removeprefix("results/demo/"), item) for job in jobs for item in job.items]
    assert len(dict(found)) == len(found), "an item is done twice"
    return dict(found)


def write_picks(*rows):
    Path("picks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return "picks.jsonl"


def fault(config):
    with pytest.raises(UsageError) as caught:
        plan.load(config, 1)
    return str(caught.value)


def test_takes_are_films_with_the_next_seeds_that_share_what_no_seed_changes(config, run):
    run["options"] |= {"takes": 3}
    found = items(config)
    assert sorted(name for name in found if name.endswith(".mp4")) == ["a.mp4", "a.take2.mp4", "a.take3.mp4"]
    for folder, seed in (("a", 7), ("a.take2", 8), ("a.take3", 9)):
        generate = found[f"steps/{folder}/latents.safetensors"]
        assert generate.options["seed"] == seed
        assert generate.inputs == {"encoded": "results/demo/steps/a/encoded.safetensors"}
    assert [name for name in found if name.endswith(("frames.json", "caption.json", "encoded.safetensors"))] == [
        "steps/a/frames.json",
        "steps/a/caption.json",
        "steps/a/encoded.safetensors",
    ]


def test_a_missing_source_is_counted_once_for_all_takes_of_its_clip(config, run):
    run["clips"] = [*ONE_CLIP, {"id": "b", "video": "gone.mp4"}]
    run["options"] |= {"takes": 3}
    assert "1 of 2 clips of run demo will fail: no file gone.mp4" in plan.load(config, 1).warnings


def test_one_take_is_what_it_was_without_takes(config, run):
    before = {name: item.line() for name, item in items(config).items()}
    run["options"] |= {"takes": 3}
    after = {name: item.line() for name, item in items(config).items()}
    assert before.items() <= after.items()


def test_takes_of_one_clip_are_work_for_as_many_gpus(config, run):
    run["options"] |= {"takes": 4}
    jobs = {job.name: job for job in plan.load(config, 4).jobs}
    assert [name for name in jobs if ".generate." in name] == [f"demo.generate.00{n}" for n in range(4)]
    assert [name for name in jobs if ".encode." in name] == ["demo.encode.000"]
    assert all(jobs[f"demo.generate.00{n}"].needs == {"demo.encode.000"} for n in range(4))


@pytest.mark.parametrize("fuse", [False, True])
def test_no_two_shards_of_takes_wait_for_each_other(config, run, fuse):
    run |= {"fuse": fuse, "clips": [{"id": f"c{n}", "video": "a.mp4"} for n in range(CLIPS_PER_SHARD)]}
    run["options"] |= {"takes": 3}
    jobs = {job.name: job for job in plan.load(config, 5).jobs}
    for job in jobs.values():
        for name in job.needs:
            same_step = name.rpartition(".")[0] == job.name.rpartition(".")[0]
            assert not same_step or name < job.name


def test_clips_jsonl_holds_clips_and_not_takes(config, run):
    run["options"] |= {"takes": 2}
    planned = plan.load(config, 1)
    planned.write()
    rows = [json.loads(line) for line in Path("results/demo/clips.jsonl").read_text().splitlines()]
    assert [(row["id"], row["takes"], row["seed"]) for row in rows] == [("a", 2, 7)]
    assert json.loads(Path("results/demo/plan.json").read_text())["shards"] == [["a", "a.take2"]]
    run["clips"] = "results/demo/clips.jsonl"
    assert {item.output for job in plan.load(config, 1).jobs for item in job.items} == {
        item.output for job in planned.jobs for item in job.items
    }


def films_of(clips, mark):
    """The films of the next run of these clips, of which the first is marked."""
    return [row["id"] for row in read_clips(write_picks({**clips[0], "mark": mark}, *clips[1:]), "next")[0]]


@pytest.mark.parametrize("told", [{}, {"take_of": "itself"}], ids=["older file", "exported"])
def test_a_star_says_nothing_of_other_clips_whose_names_look_like_takes(config, run, told):
    clips = [{"id": name, "video": "a.mp4"} for name in ("scene.take1", "scene.take2", "b", "b.takeaway")]
    clips = [{**clip, **({"take_of": clip["id"]} if told else {})} for clip in clips]
    films = {"films": write_picks(*({**clip, "film": f"{clip['id']}.mp4"} for clip in clips))}
    assert [row["id"] for row in read_clips(films, "next")[0]] == [clip["id"] for clip in clips]
    assert films_of(clips, "star") == [clip["id"] for clip in clips]
    assert films_of(clips, "reject") == [clip["id"] for clip in clips[1:]]


def test_a_star_of_a_take_leaves_out_the_other_takes_of_its_clip(config, run):
    clips = [{"id": name, "video": "a.mp4", "take_of": clip} for name, clip in (("c.take2", "c"), ("c", "c"), ("d", "d"))]
    assert films_of(clips, "star") == ["c.take2", "d"]
    clips[1] |= {"id": "hero"}  # renamed in the file
    assert films_of(clips, "star") == ["c.take2", "d"]
    older = [{name: value for name, value in clip.items() if name != "take_of"} for clip in clips]
    assert films_of([{**older[0]}, {**older[1], "id": "c"}, older[2]], "star") == ["c.take2", "d"]


def test_a_file_that_names_no_clip_of_a_take_is_refused_with_a_sentence(config, run):
    run["clips"] = write_picks({"id": "c", "take_of": ["c"], "video": "a.mp4"})
    assert "take_of of line 1 of picks.jsonl is ['c']: it must be the id of a clip" in fault(config)


def test_the_next_run_goes_on_from_the_films_that_were_made_and_names_the_clips_without_one(config, run):
    rows = [{"id": name, "video": f"{name}.mp4", "mark": "", "film": film} for name, film in (("a", "a.mp4"), ("b", ""))]
    run["clips"] = {"films": write_picks(*rows, {"id": "c", "mark": "reject", "film": ""})}
    (planned,) = plan.load(config, 1).runs
    assert [(clip.id, clip.video) for clip in planned.clips] == [("a", "a.mp4")]
    assert planned.warnings == ["clips of picks.jsonl without a film are left out: b"]
    run["clips"] = {"films": write_picks(rows[1])}
    assert fault(config).startswith("no clip that picks.jsonl keeps has a film: make films")
    run["clips"] = {"films": write_picks({"id": "a", "film": 3})}
    assert fault(config).startswith("film of line 1 of picks.jsonl is 3: it must be text")


def test_picks_of_a_chain_are_clips_of_a_recipe_without_links(config, run):
    run["clips"] = write_picks({"id": "a", "video": "a.mp4", "mark": "", "picks": ["2: 2"]})
    assert [clip.id for clip in plan.load(config, 1).runs[0].clips] == ["a"]
    run["clips"] = write_picks({"id": "a", "video": "a.mp4", "mark": "", "links": 3})
    assert fault(config).startswith("clip a of run demo: it sets links: recipe v2v and its models have no such option")


def test_a_star_in_a_list_without_ids_leaves_out_no_other_clip(config, run):
    assert films_of([{"video": "a.mp4"}, {"video": "b.mp4"}, {"prompt": "a cat"}], "star") == ["a", "b", "a-cat"]


def test_a_picked_take_of_the_longest_id_is_a_clip_of_the_next_run(config, run):
    longest = "a" * 64
    run["clips"] = write_picks({"id": f"{longest}.take2", "take_of": longest, "video": "a.mp4", "seed": 8, "takes": 1})
    planned = plan.load(config, 1)
    planned.write()
    assert planned.runs[0].names == {f"results/demo/{longest}.take2.mp4"}
    run["clips"] = "results/demo/clips.jsonl"
    assert plan.load(config, 1).runs[0].names == {f"results/demo/{longest}.take2.mp4"}
    row = {"id": f"{longest}.take2", "take_of": longest, "film": "results/demo/a.mp4"}
    run["clips"] = {"films": write_picks(row)}
    run["options"]["takes"] = 2
    (first, second) = plan.load(config, 1).runs[0].clips
    assert len(first.id) <= 64 and second.id == f"{first.id}.take2" and first.video == row["film"]
    run["clips"] = [{"id": f"{longest}a.take2", "video": "a.mp4"}]
    assert "an id has 1 to 64 letters" in fault(config)


def test_names_of_films_tell_takes_apart(config, run):
    run |= {"name": "{stem}.mp4"}
    run["options"] |= {"takes": 2}
    assert "a.mp4 of run demo would be made for a and for a.take2" in fault(config)
    run["name"] = "{stem}_{take:02d}.mp4"
    assert [name for name in items(config) if name.endswith(".mp4")] == ["a_01.mp4", "a_02.mp4"]
    run["name"] = "{clip}.mp4"
    run["clips"] = [*ONE_CLIP, {"id": "a.take2", "video": "b.mp4"}]
    assert "clip a.take2 of run demo has the id of a take of a" in fault(config)


def test_takes_of_links_have_seeds_that_no_other_link_has(config, chain):
    chain["options"] |= {"takes": 3}
    found = items(config)
    seeds = [item.options["seed"] for name, item in found.items() if name.endswith(".safetensors") and "latents" in name]
    assert sorted(seeds) == [7, 8, 107, 108, 207, 208]
    pick = found["a/video_01_a.json"]
    assert pick.inputs == {"clips": [f"results/demo/a/video_01_a.take{n}.json" for n in (1, 2, 3)]}
    assert found["steps/a/link02/encoded.safetensors"].inputs["image"] == "results/demo/a/video_01_a.json"
    assert found["a.mp4"].inputs["clips"] == ["results/demo/a/video_01_a.json", "results/demo/a/video_02_a.json"]


def test_a_figure_that_picks_is_measured_of_every_take(config, chain):
    chain["options"] |= {"takes": 2, "pick": "lowest health.blur"}
    found = items(config)
    score = found["steps/a/link01/take2.scores.json"]
    assert score.inputs["film"] == "results/demo/a/video_01_a.take2.json" and score.options["scores"] == ["health"]
    pick = found["a/video_02_a.json"]
    assert pick.inputs["scores"] == [f"results/demo/steps/a/link02/take{n}.scores.json" for n in (1, 2)]
    assert (pick.options["by"], pick.options["take"]) == ("lowest health.blur", 0)
    config["models"]["eyes"] = {"family": "vision", "variant": "clip", "path": "weights/eyes"}
    chain["options"]["pick"] = "eyes.alignment"
    assert "which nothing measures: known are figures of health" in fault(config)
    chain["scores"] = ["eyes"]
    assert items(config)["steps/a/link01/take2.scores.json"].model == "eyes"


def test_scores_of_takes_are_not_in_the_tables_of_films(config, chain):
    chain["options"] |= {"takes": 2, "pick": "motion.smoothness"}
    chain["scores"] = ["motion"]
    planned = plan.load(config, 1)
    from stages.plan.scores import items_of, score_items

    assert [item.output for item in score_items(items_of(planned.runs[0].clips[0]))] == ["results/demo/a.scores.json"]


def test_picks_name_the_take_of_a_link(config, chain):
    chain["options"] |= {"takes": 3, "pick": "motion.smoothness", "picks": ["2: 3"]}
    found = items(config)
    assert [found[f"a/video_0{n}_a.json"].options["take"] for n in (1, 2)] == [0, 3]
    file = write_picks({"id": "a", "picks": ["1: 2", "2: 2"]}, {"id": "b", "picks": ["1: 1"]})
    chain["options"] |= {"pick": file}
    found = items(config)
    assert [found[f"a/video_0{n}_a.json"].options["take"] for n in (1, 2)] == [2, 3]
    write_picks({"id": "a", "picks": ["1: 2"]})
    chain["options"] |= {"pick": ["motion.smoothness", file], "picks": []}
    picks = [items(config)[f"a/video_0{n}_a.json"].options for n in (1, 2)]
    assert [(one["by"], one["take"]) for one in picks] == [("motion.smoothness", 2), ("motion.smoothness", 0)]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            {"picks": ["1: 4"]},
            "picks of clip a of run demo names take 4 of link 1: takes are numbered from 1, and there are 3",
        ),
        ({"picks": ["3: 1"]}, "picks of clip a of run demo names link 3 of 2"),
        ({"picks": ["one"]}, "option picks is 'one': write LINK: NUMBER, both from 1, such as 3: 2"),
        ({"picks": ["2: 0"]}, "option picks is '2: 0': write LINK: NUMBER, both from 1, such as 3: 2"),
        ({"picks": ["2: 1", "2: 2"]}, "picks of clip a of run demo has both 1 and 2 for link 2: keep one of them"),
        ({"link_prompts": ["1: x", "1: y"]}, "link_prompts of clip a of run demo has both x and y for link 1"),
        ({"link_frames": ["2: 10"]}, "link 2 of clip a of run demo has 10 frames: it must be 4n+1, for example 9"),
        ({"link_seeds": ["0: 1"]}, "option link_seeds is '0: 1': write LINK: SEED"),
        ({"link_prompts": ["2"]}, "option link_prompts is '2': write LINK: VALUE"),
        ({"pick": "beauty"}, "pick of clip a of run demo is 'beauty', which nothing measures"),
        ({"pick": "motion.magnitude"}, "neither direction is better in general: write highest motion.magnitude or"),
        ({"pick": "seams.colour"}, "pick of clip a of run demo is 'seams.colour', which only a film has: name a figure of"),
        ({"pick": "motion.smoothnes"}, "did you mean motion.smoothness? docs/scores.md lists the figures"),
        ({"pick": ["motion.smoothness", "health.blur"]}, "names motion.smoothness and health.blur: name one figure"),
        ({"pick": "best motion.smoothness"}, "write highest FIGURE or lowest FIGURE"),
        ({"pick": "none.jsonl"}, "the file of picks none.jsonl does not exist"),
    ],
)
def test_wrong_picks_are_refused_with_a_sentence(config, chain, options, sentence):
    chain["options"] |= {"takes": 3, **options}
    assert sentence in fault(config)


def test_one_link_has_a_prompt_and_a_seed_of_its_own(config, chain):
    chain["options"] |= {"links": 4, "link_prompts": ["3: a red ball"], "link_seeds": ["2: 99"]}
    found = items(config)
    prompts = [found[f"steps/a/link0{n}/caption.json"].options["prompt"] for n in (1, 2, 3, 4)]
    assert prompts == ["", "", "a red ball", ""]
    seeds = [found[f"steps/a/link0{n}/latents.safetensors"].options["seed"] for n in (1, 2, 3, 4)]
    assert seeds == [7, 99, 9, 10]
    chain["options"]["prompt"] = "a green bar"
    found = items(config)
    prompts = [name for name in found if name.endswith("caption.json")]
    assert prompts == ["steps/a/link01/caption.json", "steps/a/link03/caption.json"]
    captions = [found[f"steps/a/link0{n}/encoded.safetensors"].inputs["caption"][-19:-13] for n in (1, 2, 3, 4)]
    assert captions == ["link01", "link01", "link03", "link01"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"id": "a", "picks": ["1: two"]}], "picks of line 1 of picks.jsonl has '1: two': write LINK: NUMBER, both from 1"),
        ([{"id": "a", "picks": ["1: ²"]}], "picks of line 1 of picks.jsonl has '1: ²': write LINK: NUMBER"),
        ([{"id": "a", "picks": ["1: 0"]}], "picks of line 1 of picks.jsonl has '1: 0': write LINK: NUMBER"),
        ([{"id": "a", "picks": "1: 2"}], "picks of line 1 of picks.jsonl is '1: 2': write [\"LINK: TAKE\", ...]"),
        ([{"id": "a", "picks": ["1: 2", "1: 1"]}], "picks of line 1 of picks.jsonl has both 2 and 1 for link 1"),
        ([{"id": ["a"], "picks": []}], "line 1 of picks.jsonl names no clip in id: export the picks on the page of a run"),
        ([{"video": "a.mp4"}], "line 1 of picks.jsonl names no clip in id"),
        ([{"id": "b"}, {"id": "a"}, {"id": "a"}], "line 3 of picks.jsonl names clip a again: keep one of the lines"),
        ([], "the file of picks picks.jsonl is empty: export it on the page of a run"),
    ],
)
def test_a_wrong_file_of_picks_is_refused_with_a_sentence(config, chain, rows, sentence):
    chain["options"] |= {"takes": 2, "pick": write_picks(*rows)}
    assert sentence in fault(config)


def test_picks_of_other_clips_alone_are_a_warning(config, chain):
    chain["options"] |= {"takes": 2, "pick": write_picks({"id": "b", "picks": ["1: 2"]})}
    [planned] = plan.load(config, 1).runs
    assert "the picks picks.jsonl name no clip of run demo: they name b" in planned.warnings
    write_picks({"id": "b", "picks": ["1: 2"]}, {"id": "a", "picks": ["1: 2"]})  # of several runs
    [planned] = plan.load(config, 1).runs
    assert not any("picks" in warning for warning in planned.warnings)


def test_a_list_of_which_all_is_rejected_is_refused(config, run):
    run["clips"] = write_picks({"id": "a", "video": "a.mp4", "mark": "reject"})
    assert "line 1 of picks.jsonl is rejected, and so is every other clip of this list" in fault(config)


def test_a_file_of_picks_is_a_list_of_clips_without_the_rejected(config, run):
    rows = [
        {"id": "a", "video": "a.mp4", "seed": 1, "film": "results/demo/a.mp4", "mark": "reject", "note": "dull"},
        {"id": "b", "video": "b.mp4", "seed": 2, "film": "results/demo/b.mp4", "mark": "", "note": ""},
        {"id": "c", "video": "a.mp4", "seed": 3, "film": "results/demo/c.mp4", "mark": "", "note": ""},
        {"id": "c.take2", "video": "a.mp4", "seed": 4, "film": "results/demo/c.take2.mp4", "mark": "star", "note": ""},
    ]
    run["clips"] = write_picks(*rows)
    found = items(config)
    assert [name for name in found if name.endswith(".mp4")] == ["b.mp4", "c.take2.mp4"]
    assert found["steps/c.take2/latents.safetensors"].options["seed"] == 4
    config["runs"] = {"more": {**run, "clips": {"films": "picks.jsonl"}}}
    found = items(config)
    assert {"results/more/b.mp4", "results/more/c-take2.mp4"} <= found.keys()
    assert {item.inputs["video"] for name, item in found.items() if name.endswith("frames.json")} == {
        "results/demo/b.mp4",
        "results/demo/c.take2.mp4",
    }
    write_picks({**rows[0], "mark": "good"})
    config["runs"] = {"demo": run}
    assert "mark of line 1 of picks.jsonl is 'good': it must be star, reject or empty" in fault(config)
