"""The data set command writes clips that are what their captions and scenes say."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from stages.media.read import frames
from stages.media.shapes import dataset, oracle, world
from stages.media.shapes.__main__ import main


def make(folder, *options, fails=0):
    result = CliRunner().invoke(main, [str(folder), *map(str, options)])
    assert result.exit_code == fails, result.stderr or result.exception
    return result.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    make(folder, "--count", 3, "--size", 64, "--seed", 4)
    return folder


def test_a_clip_a_caption_and_a_scene_each(made):
    stems = ["0000", "0001", "0002"]
    assert sorted(path.name for path in made.iterdir()) == ["captions", "scenes.jsonl", "videos"]
    assert sorted(path.name for path in (made / "videos").iterdir()) == [f"{stem}.mp4" for stem in stems]
    assert [*dataset.read(made / "scenes.jsonl")] == stems
    row = json.loads((made / "scenes.jsonl").read_text().splitlines()[0])
    assert row["frames"] == 17 and row["size"] == 64 and {"color", "shape", "x", "y"} <= set(row)


def test_scenes_come_back_and_are_those_of_the_seed(made):
    for i, source in enumerate(dataset.read(made / "scenes.jsonl").values()):
        assert source.scene == world.sample(np.random.default_rng([4, i]))


def test_the_videos_show_the_scenes(made):
    for stem, source in dataset.read(made / "scenes.jsonl").items():
        video = np.stack([frame.rgb for frame in frames(made / "videos" / f"{stem}.mp4")])
        reading = oracle.read(video)
        facts = world.Scene.__dataclass_fields__.keys() & {"color", "shape", "direction", "speed"}
        assert all(getattr(reading, fact) == getattr(source.scene, fact) for fact in facts)
        ground = world.BACKGROUNDS[source.scene.background]
        assert abs(np.median(video, axis=(0, 1, 2)) - ground).max() <= 3


def test_captions_are_those_of_the_scenes(made):
    for stem, source in dataset.read(made / "scenes.jsonl").items():
        assert (made / "captions" / f"{stem}.txt").read_text().strip() == source.scene.caption() == source.caption


def test_held_out_combinations(tmp_path):
    make(tmp_path / "set", "--count", 3, "--size", 32, "--frames", 3, "--held-out")
    sources = dataset.read(tmp_path / "set" / "scenes.jsonl").values()
    assert all((source.scene.color, source.scene.shape) in world.HELD_OUT for source in sources)


def test_a_folder_with_something_in_it_is_left_alone(made):
    assert "not an empty folder: give a new one" in make(made, fails=2)


def test_an_odd_size_cannot_be_written(tmp_path):
    assert "H.264 needs even sides" in make(tmp_path / "set", "--size", 63, fails=2)
