"""What one run has wrong stops that run alone; damaged files of the plan, and places that cannot be written, are named."""

import copy
import json
import os
import re
from pathlib import Path

import pytest

from stages import plan
from stages.plan import lock
from stages.plan.runs import read_fixed
from stages.runtime import locks
from stages.runtime.errors import UsageError


@pytest.fixture
def two(config):
    """A config with a second run whose list of clips may be set."""

    def of(clips):
        config["runs"]["other"] = {**copy.deepcopy(config["runs"]["demo"]), "clips": clips}
        return plan.load(config, 1)

    return of


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
    "nan.csv": ("video,prompt,steps\na.mp4,p,nan\n", "option steps is 'nan'"),
    "huge.csv": ("video,prompt,guidance_scale\na.mp4,p,1e999\n", "option guidance_scale is '1e999': it must be a finite"),
    "billions.csv": ("video,prompt,frame_num\na.mp4,p,4000000001\n", "option frame_num is 4000000001: it must be at most"),
    "unknown.csv": ("video,vido\na.mp4,b\n", "has the unknown key 'vido'"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_bad_list_breaks_its_own_run(two, config, name):
    text, message = BAD_LISTS[name]
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    planned = two(name)
    (broken,) = planned.broken
    assert broken.name == "other" and re.search(message, broken.reason) and len(broken.reason) < 400
    assert list(planned.films) == ["results/demo/a.mp4", "results/demo/b.mp4"]
    assert planned.everything == [
        *(film.mark for film in planned.films.values()),
        broken.output,
    ]  # so that a run of all fails at its end
    assert planned.warnings == [f"other cannot be made: {broken.reason}"]
    del config["runs"]["demo"]
    with pytest.raises(UsageError, match=message):  # alone, there is nothing to go on with
        plan.load(config, 1)


@pytest.mark.parametrize(
    "text", ["training: unknown\n", "- 1\n", "{", None, b"caf\xe9", "a: &a [*a]", "training: text2video\ntraining: wan\n"]
)
def test_a_bad_file_of_a_training_breaks_that_training(config, text):
    if text is not None:
        Path("bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    Path("good.yaml").write_text("training: text2video\ndata: ~/data\n")
    config["trainings"] = {"bad": "bad.yaml", "good": "good.yaml"}
    planned = plan.load(config, 1)
    assert [one.name for one in planned.trainings] == ["good"] and len(planned.films) == 2
    (broken,) = planned.broken
    assert broken.name == "training.bad" and broken.output not in planned.everything
    assert broken.reason.startswith("training bad names bad.yaml")
    assert "that must be a YAML file with training: captioner" in broken.reason


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_a_model_s_path_that_cannot_be_stops_the_runs_that_use_it(config, name):
    config["models"]["large"] = {"family": "wan", "path": f"weights/{name}"}
    config["runs"]["other"] = {**copy.deepcopy(config["runs"]["demo"]), "model": "large"}
    planned = plan.load(config, 1)
    assert [run.run.name for run in planned.runs] == ["demo"]
    (broken,) = planned.broken
    assert "the weights of model large are not at weights/" in broken.reason


@pytest.mark.parametrize("damage", ["{", '{"steps": 3}', '{"recipe": {"stepps": 3}}', '{"family": "longlive"}', None])
def test_a_model_s_folder_that_is_wrong_stops_the_runs_that_use_it(config, damage):
    folder = Path("weights/large")
    folder.mkdir(parents=True)
    settings = folder / "kinemake.json"
    settings.write_text(damage) if damage else settings.symlink_to("nowhere.json")
    config["models"]["large"] = {"family": "wan", "variant": "5b", "path": str(folder)}
    for name in ("other", "another"):
        config["runs"][name] = {**copy.deepcopy(config["runs"]["demo"]), "model": "large"}
    planned = plan.load(config, 1)
    assert [one.name for one in planned.broken] == ["other", "another"] and [run.run.name for run in planned.runs] == [
        "demo"
    ]
    assert all(f"{settings} " in one.reason and "\n" not in one.reason for one in planned.broken), planned.broken
    assert (damage is not None) or "is a link to nowhere.json, which does not exist" in planned.broken[0].reason
    del config["runs"]["other"], config["runs"]["another"]
    assert not plan.load(config, 1).broken  # of models that no run uses nothing is asked


def test_what_is_wrong_with_the_config_stops_all(two, config):
    config["models"]["small"]["options"]["steps"] = 0
    with pytest.raises(UsageError, match="config.models.small.options.steps is 0: it must be at least 1"):
        two([{"video": "a.mp4"}])
    config["models"]["small"] |= {"options": {}, "variant": "256"}
    with pytest.raises(UsageError, match="model small of family wan has the variant '256': set variant to one of"):
        two([{"video": "a.mp4"}])


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
def test_a_plan_with_any_field_damaged_is_one_sentence(tmp_path, damage):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**FIXED, **damage}))
    with pytest.raises(
        UsageError, match=r"plan.json is not a plan of this version \(.*\): remove the file to plan anew"
    ) as caught:
        read_fixed(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"caf\xe9", b'{"seed": NaN}', b"7", b"[1]", b"{}"])
def test_a_plan_that_is_no_json_is_one_sentence(tmp_path, text):
    (tmp_path / "plan.json").write_bytes(text)
    with pytest.raises(UsageError, match="is not a plan of this version .*: remove the file to plan anew"):
        read_fixed(tmp_path / "plan.json")


def test_a_plan_that_is_a_link_to_nothing_is_not_taken_for_none(tmp_path):
    (tmp_path / "plan.json").symlink_to("nowhere")
    with pytest.raises(UsageError, match="plan.json is a link to nowhere, which does not exist.*: remove the file"):
        read_fixed(tmp_path / "plan.json")


def test_a_whole_plan_is_taken(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(FIXED))
    assert read_fixed(tmp_path / "plan.json") == FIXED
    assert read_fixed(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text", ["a: &a {b: *a}", "runs: 1\nruns: 2", "[" * 9999, "a:\n\tb: 1", b"caf\xe9", "- 1", "a: b".encode("utf-16")]
)
def test_config_files_are_looked_at_before_snakemake_reads_them(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match="config.yaml"):
        plan.check_files([tmp_path / "none.yaml", path])


def test_keys_that_yaml_made_into_something_else_are_named(config):
    import datetime

    for key in (7, True, datetime.date(2026, 1, 1), None):
        with pytest.raises(UsageError, match="config has the unknown key"):
            plan.load({**config, key: 1}, 1)
        with pytest.raises(UsageError, match="config.models has the key"):
            plan.load({**config, "models": {**config["models"], key: config["models"]["eye"]}}, 1)


# --------------------------------------------------------------------------------------------------------------- places


def place(kind, name):
    if kind == "a file":
        Path(name).write_text("mine")
    elif kind == "a dangling link":
        os.symlink("nowhere", name)
    elif kind == "a folder below a file":
        Path("file").write_text("mine")


PLACES = {"a file": "is a file, not a folder", "a dangling link": "is a link to nowhere, which does not exist"}


@pytest.mark.parametrize("kind", [*PLACES, "a folder below a file"])
@pytest.mark.parametrize("which", ["results", "store"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is(config, kind, which):
    name = "file/place" if kind == "a folder below a file" else "place"
    place(kind, name)
    planned = plan.load({**config, which: name}, 1)
    if which == "results":
        with pytest.raises(UsageError, match=f"results cannot be written .*{PLACES.get(kind, 'file is a file')}"):
            planned.begin()
    with pytest.raises(
        UsageError, match=f"{name} cannot be written .*{PLACES.get(kind, 'file is a file')}.*choose another folder"
    ):
        planned.write()
    assert not os.path.exists("nowhere")
    assert not os.path.isfile("place") or Path("place").read_text() == "mine"


@pytest.mark.parametrize("other", ["results/demo", "results/weights", "results/demo/steps/a", "results/demo/a.mp4/"])
def test_a_file_for_a_folder_and_a_folder_for_a_file_are_named_before_the_dag(config, other):
    path = Path(other)
    path.parent.mkdir(parents=True)
    path.mkdir() if other.endswith("/") else path.write_text("mine")
    with pytest.raises(UsageError, match=f"{path} is a fil|{path} is a folder, not a file"):
        plan.load(config, 1).begin()


def test_no_planted_link_is_written_through(config):
    Path("results/demo").mkdir(parents=True)
    Path("precious").write_text("mine")
    os.symlink("../../precious", "results/demo/.plan.json.tmp")
    Path("results/demo/config.yaml").write_bytes(b"caf\xe9")
    plan.load(config, 1).write()
    assert Path("precious").read_text() == "mine" and read_fixed(Path("results/demo/plan.json"))


@pytest.mark.parametrize("name", ["results/demo", "results/demo/plan.json", "results/demo/steps"])
def test_something_in_the_place_of_a_run_s_own_file_is_named(config, name):
    path = Path(name)
    path.parent.mkdir(parents=True)
    path.mkdir() if path.suffix else path.write_text("mine")
    with pytest.raises(UsageError, match=f"{name}"):
        plan.load(config, 1).write()
    assert path.suffix or path.read_text() == "mine"


def test_a_torn_log_ends_no_summary(config):
    planned = plan.load(config, 1)
    job = planned.jobs[0]
    Path(job.log).parent.mkdir(parents=True)
    Path(job.log).write_text(
        '{"event": "item", "sta{"event": "shard"}\n{"event": "shard", "made": 2, "reused": 0, "failed": 0}\n'
    )
    Path(job.mark).parent.mkdir(parents=True)
    Path(job.mark).touch()
    assert planned.summary() == "items: 2 made, 0 reused from the store, 0 failed\n"


@pytest.mark.parametrize("kind", ["a link", "a hard link", "a folder", "a pipe"])
def test_a_lock_that_is_not_its_own_is_neither_followed_nor_written(config, kind):
    Path("results").mkdir()
    Path("precious").write_text("mine")
    name = f"results/{lock.NAME}"
    {"a link": lambda: os.symlink("../precious", name), "a hard link": lambda: os.link("precious", name)}.get(
        kind, lambda: os.mkdir(name) if kind == "a folder" else os.mkfifo(name)
    )()
    planned = plan.load(config, 1)
    planned.begin()
    with pytest.raises(UsageError, match=r"the lock results/.lock .*: remove it"):
        planned.write()
    assert Path("precious").read_text() == "mine"


def test_names_that_differ_in_case_alone_are_refused_where_the_file_system_folds_case(config, monkeypatch):
    config["runs"]["demo"]["clips"] = [{"id": name, "video": "a.mp4", "prompt": "p"} for name in ("beach", "Beach")]
    monkeypatch.setattr(locks, "_held", [])
    plan.load(config, 1).write()  # here both can be
    for descriptor in locks._held:
        os.close(descriptor)
    folded = Path("results", lock.NAME.upper())
    monkeypatch.setattr(plan.os.path, "exists", lambda path, real=os.path.exists: Path(path) == folded or real(path))
    monkeypatch.setattr(
        plan.os.path, "samefile", lambda one, other, real=os.path.samefile: Path(other) == folded or real(one, other)
    )
    with pytest.raises(
        UsageError, match="Beach/.* and .*beach/.* are one file: the file system of results takes no account of case"
    ):
        plan.load(config, 1).write()


def test_a_clip_that_reads_what_its_run_would_write_is_no_finished_film(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film = tmp_path / "results/other/q.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"a video of the user's own")
    for path in (str(film), "results/other/q.mp4", "results/other/../other/q.mp4"):
        (broken,) = two([{"id": "q", "video": path, "prompt": "p"}]).broken
        assert "clip q of run other reads" in broken.reason and "which the run itself would write" in broken.reason


def test_an_output_is_not_the_folder_of_another(two, config):
    config["runs"]["demo"]["recipe"] = "chain"
    (broken,) = two([{"id": name, "video": "v.mp4", "prompt": "p"} for name in ("a", "a.json")]).broken
    assert "results/other/a.json of run other would be a file for a and a folder for a.json" in broken.reason


@pytest.mark.parametrize("store", ["..", "/", "linked/demo"])
def test_the_store_is_in_no_run_and_holds_no_results_however_it_is_spelled(config, tmp_path, monkeypatch, store):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("linked").symlink_to("results")
    with pytest.raises(UsageError, match="the store"):
        plan.load({**config, "store": store}, 1)


def test_a_blank_prompt_of_a_run_is_none(config):
    config["runs"]["demo"]["options"]["prompt"] = " \u2028\t"
    for row in config["runs"]["demo"]["clips"]:
        row.pop("prompt", None)
    assert all(not clip.prompts for run in plan.load(config, 1).runs for clip in run.clips)
