"""Items from manifest lines and command lines, and outputs that would overwrite an input."""

import json
import os
import re

import pytest

from stages.runtime.errors import UsageError
from stages.runtime.items import item_of_row, read_manifest
from stages.runtime.stages import STAGES
from tests import zoo
from tests.commands import stage

EXTRACT, CONCAT = STAGES["extract_frames"], STAGES["concat"]


def test_a_manifest_line_may_have_nulls_and_paths_from_the_home_folder(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(
        b'\xef\xbb\xbf{"video": "~/a.mp4", "output": "~/x.json", "id": null, "fps": null}\r\n\r\n'
    )
    (item,) = read_manifest(tmp_path / "m.jsonl", EXTRACT)
    assert item.inputs == {"video": os.path.expanduser("~/a.mp4")}
    assert (item.output, item.id, item.options) == (os.path.expanduser("~/x.json"), "x.json", {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "has no line"),
        ('{"video": "a.mp4", "output": 3}', "line 1 of .* has no output"),
        ('{"video": "a.mp4", "output": "x.json", "model": 5}', "model of line 1 of .* is 5: it must be a model's folder"),
        ('{"video": "caf\\udce9.mp4", "output": "x.json"}', "line 1 of .* has half a character"),
        ('{"video": "a.mp4", "output": "x.json", "count": 1e999}', "line 1 of .* has the number 1e999"),
        (
            '{"video": "a.mp4", "output": "x.json", "count": 1000000000}',
            "option count is 1000000000: it must be at most 100000",
        ),
        ('{"video": "a.mp4", "output": "x.json"}\n{"video": "b", "output": "./x.json"}', "makes x.json twice"),
        ("[" * 100_000, "line 1 of .* is nested too deep"),
    ],
    ids=lambda value: value[:40],
)
def test_a_manifest_line_that_is_no_item_is_one_sentence(tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text(line)
    stderr = stage("extract_frames", "--manifest", tmp_path / "m.jsonl", fails=2)
    assert re.search(message, stderr) and len(stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", ["itself", "another spelling", "a link", "a hard link"])
def test_an_output_that_is_an_input_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "clip.json").write_text("{}")
    output = {"itself": "clip.json", "another spelling": "folder/../clip.json"}.get(kind, "other.json")
    if kind == "a link":
        os.symlink("clip.json", "other.json")
    if kind == "a hard link":
        os.link("clip.json", "other.json")
    with pytest.raises(UsageError, match=f"output {output} would overwrite clip.json, which is read: choose another output"):
        item_of_row({"video": "clip.json", "output": output}, EXTRACT, "the command line")


@pytest.mark.parametrize(
    ("row", "overwritten"),
    [
        ({"clips": ["a.json"], "source": "film.mp4", "output": "film.mp4"}, "film.mp4"),
        ({"clips": ["b.json", "film.json"], "output": "film.mp4"}, "film.json"),  # where the film's own description comes
    ],
)
def test_a_film_does_not_overwrite_its_inputs(row, overwritten):
    with pytest.raises(UsageError, match=f"output film.mp4 would overwrite {overwritten}"):
        item_of_row(row, CONCAT, "the command line")


def test_concat_by_hand_does_not_overwrite_its_source(tmp_path, own_cache):
    video = zoo.plain(tmp_path, "a.mp4", frames=5, size=(64, 48))
    before = video.read_bytes()
    (tmp_path / "clip.json").write_text("{}")
    stderr = stage("concat", tmp_path / "clip.json", "--source", video, "--output", video, fails=2)
    assert "would overwrite" in stderr and video.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caf\udce9.mp4", "--output", "x.json"), "video of the command line is 'caf.udce9.mp4', whose name is not UTF-8"),
        (("a.mp4", "--output", "caf\udce9.json"), "output of the command line is .* not UTF-8: rename the file"),
        (("a.mp4", "--output", "x.json", "--size", "64"), "size '64' is not WIDTH.HEIGHT"),
        (("a.mp4", "--output", "x.json", "--size", "64*99999"), "size '64.99999' has a side that is not 1 to 16384 pixels"),
        (("a.mp4", "--output", "x.json", "--count", 10**9), "option count is 1000000000: it must be at most 100000"),
        (("a.mp4", "--output", "folder.json"), "output folder.json is a folder: remove it, or choose another output"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_invalid_paths_and_numbers_are_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    stderr = stage("extract_frames", *arguments, fails=2)
    assert re.search(message, stderr) and len(stderr.splitlines()) == 1


@pytest.mark.parametrize("value", ["nan", "1e999", "-inf"])
def test_a_command_line_refuses_nan_and_infinity(tmp_path, value):
    encoded = tmp_path / "a.safetensors"
    encoded.write_bytes(b"")
    model = tmp_path / "model"
    (model / "transformer").mkdir(parents=True)
    (model / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "expand_timesteps": True}))
    arguments = (encoded, "--output", tmp_path / "x.safetensors", "--model", model, f"--guidance-scale={value}")
    assert "option guidance_scale is" in stage("generate", *arguments, fails=2)


@pytest.mark.parametrize("place", ["a file", "a dangling link", "below a file"])
def test_an_unwritable_store_is_reported_before_any_work(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    os.symlink("nowhere", tmp_path / "link")
    store = tmp_path / {"a file": "file", "a dangling link": "link", "below a file": "file/store"}[place]
    stderr = stage("extract_frames", "none.mp4", "--output", tmp_path / "x.json", "--store", store, fails=1)
    assert f"the store {store} cannot be written" in stderr and len(stderr.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_paths_of_a_command_line_may_start_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    stderr = stage("extract_frames", "~/none.mp4", "--output", "~/x.json", "--store=~/store", fails=1)
    assert f"{tmp_path}/none.mp4 does not exist" in stderr
    assert (tmp_path / "store").is_dir()
