"""A mistake in one run stops only that run. Damaged plan files and unwritable folders are named."""

import copy
import json
import os
import re
from pathlib import Path

import pytest

from stages import plan
from stages.plan.runs import read_fixed
from stages.runtime import locks
from stages.runtime.errors import UsageError
from stages.runtime.locks import LOCK


@pytest.fixture
def plan_two(config):
    """A function that plans the config with a second run over the given clips."""

    def plan_two_runs(clips):
        config["runs"]["other"] = {**copy.deepcopy(config["runs"]["demo"]), "clips": clips}
        return plan.load(config, 1)

    return plan_two_runs


BAD_LISTS = {
    "half a character.jsonl": (
        '{"id": "s", "prompt": "a red ring \\ud83d on black"}\n',
        "line 1 of .* has half a character",
    ),
    "open quote.csv": ('video,prompt\na.mp4,"a red ring\nb.mp4,a blue square\n', "row 2 of .* opens a quote"),
    "long.csv": ("video,prompt\na.mp4," + "x" * 200_000 + "\n", "row 2 of .* has a cell of more than"),
    "deep.jsonl": ('{"id": ' + "[" * 100_000, "line 1 of .* is nested too deep"),
    "Latin-1.txt": (b"caf\xe9", "is not UTF-8 text"),
    "empty.csv": ("", "empty.csv has no clips"),
    "nan.csv": ("video,prompt,steps\na.mp4,p,nan\n", "option num_inference_steps is 'nan'"),
    "huge.csv": ("video,prompt,guidance_scale\na.mp4,p,1e999\n", "option guidance_scale is '1e999': it must be a finite"),
    "billions.csv": ("video,prompt,frame_num\na.mp4,p,4000000001\n", "option num_frames is 4000000001: it must be at most"),
    "unknown.csv": ("video,vido\na.mp4,b\n", "has the unknown key 'vido'"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_damaged_list_of_clips_breaks_only_its_own_run(plan_two, config, name):
    text, message = BAD_LISTS[name]
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    planned = plan_two(name)
    (broken,) = planned.broken
    assert broken.name == "other" and re.search(message, broken.reason) and len(broken.reason) < 400
    assert list(planned.films) == ["results/demo/a.mp4", "results/demo/b.mp4"]
    assert planned.everything == [
        *{film.mark for film in planned.films.values()},
        broken.output,
    ]  # so that a run of all fails at its end
    assert planned.warnings == [f"other cannot be made: {broken.reason}"]
    del config["runs"]["demo"]
    with pytest.raises(UsageError, match=message):  # without another run nothing can be planned
        plan.load(config, 1)


@pytest.mark.parametrize(
    "text", ["training: unknown\n", "- 1\n", "{", None, b"caf\xe9", "a: &a [*a]", "training: text2video\ntraining: wan\n"]
)
def test_a_damaged_training_config_breaks_only_that_training(config, text):
    if text is not None:
        Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("good.yaml").write_text("training: text2video\ndata: ~/data\n")
    config["trainings"] = {"bad": "bad.yaml", "good": "good.yaml"}
    planned = plan.load(config, 1)
    assert [training.name for training in planned.trainings] == ["good"] and len(planned.films) == 2
    (broken,) = planned.broken
    assert broken.name == "training.bad" and broken.output not in planned.everything
    assert broken.reason.startswith("training bad names bad.yaml")
    assert "that must be a YAML file with training: captioner" in broken.reason


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_an_impossible_model_path_breaks_only_the_runs_that_use_it(config, name):
    config["models"]["large"] = {"family": "wan", "path": f"weights/{name}"}
    config["runs"]["other"] = {**copy.deepcopy(config["runs"]["demo"]), "model": "large"}
    planned = plan.load(config, 1)
    assert [run.run.name for run in planned.runs] == ["demo"]
    (broken,) = planned.broken
    assert "the weights of model large are not at weights/" in broken.reason


@pytest.mark.parametrize("damage", ["{", '{"steps": 3}', '{"recipe": {"stepps": 3}}', '{"family": "longlive"}', None])
def test_invalid_settings_of_a_model_break_only_the_runs_that_use_it(config, damage):
    folder = Path("weights/large")
    folder.mkdir(parents=True)
    settings = folder / "kinemake.json"
    settings.write_text(damage) if damage else settings.symlink_to("nowhere.json")
    config["models"]["large"] = {"family": "wan", "variant": "5b", "path": str(folder)}
    for name in ("other", "another"):
        config["runs"][name] = {**copy.deepcopy(config["runs"]["demo"]), "model": "large"}
    planned = plan.load(config, 1)
    assert [broken.name for broken in planned.broken] == ["other", "another"] and [run.run.name for run in planned.runs] == [
        "demo"
    ]
    assert all(f"{settings} " in broken.reason and "\n" not in broken.reason for broken in planned.broken), planned.broken
    assert (damage is not None) or "is a link to nowhere.json, which does not exist" in planned.broken[0].reason
    del config["runs"]["other"], config["runs"]["another"]
    assert not plan.load(config, 1).broken  # models that no run uses are not checked


def test_an_invalid_config_stops_all_runs(plan_two, config):
    config["models"]["small"]["options"]["steps"] = 0
    with pytest.raises(UsageError, match="config.models.small.options.steps is 0: it must be at least 1"):
        plan_two([{"video": "a.mp4"}])
    config["models"]["small"] |= {"options": {}, "variant": "256"}
    with pytest.raises(UsageError, match="model small of family wan has the variant '256': set variant to one of"):
        plan_two([{"video": "a.mp4"}])


FIXED = {"version": 1, "seed": 7, "shards": [["a"], ["b"]]}


@pytest.mark.parametrize(
    "damage",
    [
        *({"version": 2}, {"version": "1"}, {"version": None}, {"seed": -1}, {"seed": 2**70}, {"seed": 1.5}, {"seed": "7"}),
        *({"seed": True}, {"seed": [7]}, {"shards": None}, {"shards": ["a"]}, {"shards": [["a", 7]]}, {"shards": [[["a"]]]}),
        *({"shards": {"a": 1}}, {"shards": [["a"], ["a"]]}, {"shards": [["../a"]]}, {"shards": [["x" * 70]]}),
    ],
    ids=str,
)
def test_a_plan_file_with_a_damaged_field_is_one_sentence(tmp_path, damage):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**FIXED, **damage}))
    with pytest.raises(
        UsageError, match=r"plan.json is not a plan of this version \(.*\): remove the file to plan anew"
    ) as caught:
        read_fixed(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"caf\xe9", b'{"seed": NaN}', b"7", b"[1]", b"{}"])
def test_a_plan_file_that_is_not_json_is_one_sentence(tmp_path, text):
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(UsageError, match="is not a plan of this version .*: remove the file to plan anew"):
        read_fixed(tmp_path / "plan.json")


def test_a_plan_file_that_is_a_dangling_link_does_not_count_as_missing(tmp_path):
    (tmp_path / "plan.json").symlink_to("nowhere")
    with pytest.raises(UsageError, match="plan.json is a link to nowhere, which does not exist.*: remove the file"):
        read_fixed(tmp_path / "plan.json")


def test_a_valid_plan_file_is_read(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(FIXED))
    assert read_fixed(tmp_path / "plan.json") == FIXED
    assert read_fixed(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text", ["a: &a {b: *a}", "runs: 1\nruns: 2", "[" * 9999, "a:\n\tb: 1", b"caf\xe9", "- 1", "a: b".encode("utf-16")]
)
def test_check_files_refuses_damaged_config_files(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match="config.yaml"):
        plan.check_files([tmp_path / "none.yaml", path])


def test_config_keys_that_are_not_text_are_named(config):
    import datetime

    for key in (7, True, datetime.date(2026, 1, 1), None):
        with pytest.raises(UsageError, match="config has the unknown key"):
            plan.load({**config, key: 1}, 1)
        with pytest.raises(UsageError, match="config.models has the key"):
            plan.load({**config, "models": {**config["models"], key: config["models"]["eye"]}}, 1)


# --------------------------------------------------------------------------------------------------- files and folders


def put(kind, name):
    if kind == "a file":
        Path(name).write_text("mine")
    elif kind == "a dangling link":
        os.symlink("nowhere", name)
    elif kind == "a folder below a file":
        Path("file").write_text("mine")


PLACES = {"a file": "is a file, not a folder", "a dangling link": "is a link to nowhere, which does not exist"}


@pytest.mark.parametrize("kind", [*PLACES, "a folder below a file"])
@pytest.mark.parametrize("key", ["results", "store"])
def test_an_unwritable_results_or_store_folder_is_named_before_anything_is_written(config, kind, key):
    name = "file/place" if kind == "a folder below a file" else "place"
    put(kind, name)
    planned = plan.load({**config, key: name}, 1)
    if key == "results":
        with pytest.raises(UsageError, match=f"results cannot be written .*{PLACES.get(kind, 'file is a file')}"):
            planned.begin()
    with pytest.raises(
        UsageError, match=f"{name} cannot be written .*{PLACES.get(kind, 'file is a file')}.*choose another folder"
    ):
        planned.write()
    assert not os.path.exists("nowhere")
    assert not os.path.isfile("place") or Path("place").read_text() == "mine"


@pytest.mark.parametrize("other", ["results/demo", "results/weights", "results/demo/steps/a", "results/demo/a.mp4/"])
def test_a_file_and_a_folder_that_block_results_are_named_before_the_dag(config, other):
    path = Path(other)
    path.parent.mkdir(parents=True)
    path.mkdir() if other.endswith("/") else path.write_text("mine")
    with pytest.raises(UsageError, match=f"{path} is a fil|{path} is a folder, not a file"):
        plan.load(config, 1).begin()


def test_writing_a_plan_follows_no_planted_link(config):
    Path("results/demo").mkdir(parents=True)
    Path("precious").write_text("mine")
    os.symlink("../../precious", "results/demo/.plan.json.tmp")
    Path("results/demo/config.yaml").write_bytes(b"caf\xe9")
    plan.load(config, 1).write()
    assert Path("precious").read_text() == "mine" and read_fixed(Path("results/demo/plan.json"))


@pytest.mark.parametrize("name", ["results/demo", "results/demo/plan.json", "results/demo/steps"])
def test_a_path_that_blocks_a_file_of_the_run_is_named(config, name):
    path = Path(name)
    path.parent.mkdir(parents=True)
    path.mkdir() if path.suffix else path.write_text("mine")
    with pytest.raises(UsageError, match=f"{name}"):
        plan.load(config, 1).write()
    assert path.suffix or path.read_text() == "mine"


def test_summarise_skips_truncated_log_lines(config):
    planned = plan.load(config, 1)
    job = planned.jobs[0]
    Path(job.log).parent.mkdir(parents=True)
    Path(job.log).write_text(
        '{"event": "item", "sta{"event": "shard"}\n{"event": "shard", "made": 2, "reused": 0, "failed": 0}\n'
    )
    Path(job.mark).parent.mkdir(parents=True)
    Path(job.mark).touch()
    assert plan.summarise(planned) == "items: 2 made, 0 reused from the store, 0 failed\n"


def test_summarise_prints_no_control_characters_of_prompts_and_paths(config):
    planned = plan.load(config, 1)
    planned.runs[0].warnings.append("a\x1b[2J\u202eb")
    assert "a [2J b" in (text := plan.summarise(planned))
    assert text.replace("\n", "").isprintable()


def test_summarise_always_names_what_failed(config):
    """Also a killed job of weights, and an error of Snakemake itself."""
    planned = plan.load(config, 1)
    assert "all  snakemake  Snakemake reports an error that no job has: see" in re.sub(
        " {2,}", "  ", plan.summarise(planned, failed=True)
    )
    weights = planned.weights[0]
    Path(weights.log).parent.mkdir(parents=True)
    Path(weights.log).touch()
    (row,) = plan.summarise(planned, failed=True).splitlines()[2:]
    reason = f"it ended without an error message, as a killed process does: see {weights.log}"
    assert re.split(r"\s{2,}", row) == [weights.name, "fetch", reason]
    Path(weights.output).touch()
    assert weights.name not in plan.summarise(planned, failed=True)


@pytest.mark.parametrize("kind", ["a link", "a hard link", "a folder", "a pipe"])
def test_a_planted_results_lock_is_refused_and_not_written(config, kind):
    Path("results").mkdir()
    Path("precious").write_text("mine")
    name = f"results/{LOCK}"
    {"a link": lambda: os.symlink("../precious", name), "a hard link": lambda: os.link("precious", name)}.get(
        kind, lambda: os.mkdir(name) if kind == "a folder" else os.mkfifo(name)
    )()
    planned = plan.load(config, 1)
    planned.begin()
    with pytest.raises(UsageError, match=r"the lock results/.lock .*: remove it"):
        planned.write()
    assert Path("precious").read_text() == "mine"


def test_clip_ids_that_differ_only_in_case_are_refused_on_a_case_insensitive_file_system(config, monkeypatch):
    config["runs"]["demo"]["clips"] = [{"id": name, "video": "a.mp4", "prompt": "p"} for name in ("beach", "Beach")]
    monkeypatch.setattr(locks, "_held", [])
    plan.load(config, 1).write()  # this file system keeps both
    for descriptor in locks._held:
        os.close(descriptor)
    folded = Path("results", LOCK.upper())
    monkeypatch.setattr(os.path, "exists", lambda path, real=os.path.exists: Path(path) == folded or real(path))
    monkeypatch.setattr(
        os.path, "samefile", lambda one, other, real=os.path.samefile: Path(other) == folded or real(one, other)
    )
    with pytest.raises(UsageError, match="Beach/.* and .*beach/.* are one file: the file system of results ignores case"):
        plan.load(config, 1).write()


def test_a_clip_that_reads_a_result_of_its_own_run_breaks_that_run(plan_two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film = tmp_path / "results/other/q.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"a video of the user's own")
    for path in (str(film), "results/other/q.mp4", "results/other/../other/q.mp4"):
        (broken,) = plan_two([{"id": "q", "video": path, "prompt": "p"}]).broken
        assert "clip q of run other reads" in broken.reason and "which the run itself would write" in broken.reason


def test_an_output_that_would_be_the_folder_of_another_breaks_the_run(plan_two, config):
    config["runs"]["demo"]["recipe"] = "chain"
    (broken,) = plan_two([{"id": name, "video": "v.mp4", "prompt": "p"} for name in ("a", "a.json")]).broken
    assert "results/other/a.json of run other would be a file for a and a folder for a.json" in broken.reason


@pytest.mark.parametrize("store", ["..", "/", "linked/demo"])
def test_a_store_that_contains_the_results_or_lies_in_a_run_is_refused(config, tmp_path, monkeypatch, store):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("linked").symlink_to("results")
    with pytest.raises(UsageError, match="the store"):
        plan.load({**config, "store": store}, 1)


def test_a_blank_prompt_of_a_run_counts_as_no_prompt(config):
    config["runs"]["demo"]["options"]["prompt"] = " \u2028\t"
    for row in config["runs"]["demo"]["clips"]:
        row.pop("prompt", None)
    assert all(not clip.prompts for run in plan.load(config, 1).runs for clip in run.clips)
