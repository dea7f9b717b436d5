"""The data set command writes clips that agree with their captions and scenes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from stages.media.read import frames
from stages.media.shapes import dataset, oracle, world
from stages.media.shapes.__main__ import main


def run_dataset(folder, *options, fails=0):
    result = CliRunner().invoke(main, [str(folder), *map(str, options)])
    assert result.exit_code == fails, result.stderr or result.exception
    return result.stderr


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    run_dataset(folder, "--count", 3, "--size", 64, "--seed", 4)
    return folder


def test_dataset_writes_a_clip_a_caption_and_a_scene_each(data_set):
    stems = ["0000", "0001", "0002"]
    assert sorted(path.name for path in data_set.iterdir()) == ["captions", "scenes.jsonl", "videos"]
    assert sorted(path.name for path in (data_set / "videos").iterdir()) == [f"{stem}.mp4" for stem in stems]
    assert [*dataset.read(data_set / "scenes.jsonl")] == stems
    row = json.loads((data_set / "scenes.jsonl").read_text().splitlines()[0])
    assert row["frames"] == 17 and row["size"] == 64 and {"color", "shape", "x", "y"} <= set(row)


def test_dataset_scenes_depend_on_the_seed_alone(data_set):
    for i, source in enumerate(dataset.read(data_set / "scenes.jsonl").values()):
        assert source.scene == world.sample(np.random.default_rng([4, i]))


def test_dataset_videos_show_their_scenes(data_set):
    for stem, source in dataset.read(data_set / "scenes.jsonl").items():
        video = np.stack([frame.rgb for frame in frames(data_set / "videos" / f"{stem}.mp4")])
        reading = oracle.read(video)
        facts = world.Scene.__dataclass_fields__.keys() & {"color", "shape", "direction", "speed"}
        assert all(getattr(reading, fact) == getattr(source.scene, fact) for fact in facts)
        ground = world.BACKGROUNDS[source.scene.background]
        assert abs(np.median(video, axis=(0, 1, 2)) - ground).max() <= 3


def test_dataset_captions_describe_their_scenes(data_set):
    for stem, source in dataset.read(data_set / "scenes.jsonl").items():
        assert (data_set / "captions" / f"{stem}.txt").read_text().strip() == source.scene.caption() == source.caption


def test_dataset_writes_held_out_combinations_on_request(tmp_path):
    run_dataset(tmp_path / "set", "--count", 3, "--size", 32, "--frames", 3, "--held-out")
    sources = dataset.read(tmp_path / "set" / "scenes.jsonl").values()
    assert all((source.scene.color, source.scene.shape) in world.HELD_OUT for source in sources)


def test_dataset_refuses_a_folder_that_is_not_empty(data_set):
    assert "not an empty folder: give a new one" in run_dataset(data_set, fails=2)


def test_dataset_refuses_an_odd_size(tmp_path):
    assert "H.264 needs even sides" in run_dataset(tmp_path / "set", "--size", 63, fails=2)
