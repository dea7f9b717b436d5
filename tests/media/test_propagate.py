"""`propagate` as a user runs it: how many frames, which of them, and what it says to files that do not go together."""

import numpy as np
import pytest

from stages.media import read
from stages.media.probe import probe
from stages.media.read import read_picture
from stages.media.write import write_png
from stages.runtime import artifacts
from tests import zoo
from tests.commands import stage
from tests.media.propagate.scenes import layered, panning, psnr, toned


def write_frames(path, pictures, indices=None):
    """A `frames` artifact of pictures, uint8 [H, W, 3], at their indices in the video."""
    listed = []
    for index, picture in zip(indices if indices is not None else range(len(pictures)), pictures):
        suffix = f"/{index:06d}.png"
        artifacts.member_path(path, suffix).parent.mkdir(exist_ok=True)
        write_png(artifacts.member_path(path, suffix), picture)
        listed.append({"index": index, "time": index / 10, "suffix": suffix})
    height, width = pictures[0].shape[:2] if pictures else (64, 96)
    fields = {"width": width, "height": height, "select": "all", "frames": listed, "source": {"fps": "10"}}
    artifacts.write_index(path, "frames", fields, [frame["suffix"] for frame in listed])
    return path


def write_clip(folder, pictures, keys):
    """A clip and its translated keys, as files."""
    return (
        write_frames(folder / "frames.json", pictures),
        write_frames(folder / "keys.json", [toned(pictures[key]) for key in keys], keys),
    )


def propagate(frames, keys, *arguments, output=None, fails=0):
    """The pictures of a run by their index, or what it complained of."""
    output = output or frames.parent / "out.json"
    said = stage("propagate", frames, "--keys", keys, "--output", output, *arguments, fails=fails)
    if fails:
        return said
    made = artifacts.read(output, ("propagated",))
    return {frame["index"]: read_picture(made.member(frame["suffix"])) for frame in made.fields["frames"]}


@pytest.mark.parametrize("engine", ["warp", "auto"])
@pytest.mark.parametrize(
    ("count", "keys"),
    [
        (1, [0]),
        (2, [0]),
        (2, [1]),
        (2, [0, 1]),
        (3, [0]),
        (3, [1]),
        (3, [0, 2]),
        (3, [0, 1, 2]),
        (6, [0, 3]),
        (6, [2, 4]),
    ],
)
def test_exactly_the_frames_that_came_in(tmp_path, engine, count, keys):
    pictures = panning(count)
    made = propagate(*write_clip(tmp_path, pictures, keys), "--engine", engine)
    assert list(made) == list(range(count))
    for key in keys:
        assert np.array_equal(made[key], toned(pictures[key]))
    for index, picture in made.items():
        assert psnr(picture[6:-6, 10:-10], toned(pictures[index])[6:-6, 10:-10]) > 25


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
@pytest.mark.parametrize(
    ("count", "keys"),
    [(7, [0, 3, 5]), (7, [1, 3, 6]), (7, [0, 2, 4, 6]), (4, [2]), (3, [0, 1, 2])],
    ids=["a tail", "a head", "ends are keys", "one key", "all are keys"],
)
def test_the_parts_together_are_the_clip(tmp_path, count, keys, parts):
    files = write_clip(tmp_path, panning(count), keys)
    whole = propagate(*files, "--engine", "warp")
    made = [
        propagate(*files, "--engine", "warp", "--part", part, "--parts", parts, output=tmp_path / f"part{part}.json")
        for part in range(parts)
    ]
    assert [index for part in made for index in part] == list(range(count))
    for part in made:
        for index, picture in part.items():
            assert np.array_equal(picture, whole[index])


def test_frames_from_extract_frames(tmp_path):
    stage("extract_frames", zoo.plain(tmp_path), "--select", "all", "--output", tmp_path / "frames.json")
    frames = artifacts.read(tmp_path / "frames.json", ("frames",))
    keys = [0, 16, 32]
    pictures = [toned(read_picture(frames.member(frames.fields["frames"][key]["suffix"]))) for key in keys]
    write_frames(tmp_path / "keys.json", pictures, keys)
    made = propagate(tmp_path / "frames.json", tmp_path / "keys.json", "--engine", "warp")
    assert list(made) == list(range(zoo.FRAMES))
    written = artifacts.read(tmp_path / "out.json", ("propagated",))
    assert [frame["time"] for frame in written.fields["frames"]] == [frame["time"] for frame in frames.fields["frames"]]
    assert written.fields["source"] == frames.fields["source"] and written.fields["keys"] == keys


@pytest.mark.parametrize("poisson", [[], ["--no-poisson"]])
def test_two_sides_are_better_than_one(tmp_path, poisson):
    pictures = layered(7)
    two = propagate(*write_clip(tmp_path, pictures, [0, 6]), *poisson)
    one = propagate(tmp_path / "frames.json", write_frames(tmp_path / "first.json", [toned(pictures[0])]))
    for index in (4, 5):
        assert psnr(two[index], toned(pictures[index])) > psnr(one[index], toned(pictures[index]))


def test_parts_become_a_film_at_the_source_s_rate_with_its_sound(tmp_path):
    source = zoo.plain(tmp_path, frames=9, fps=12, sound=1)
    stage("extract_frames", source, "--select", "all", "--output", tmp_path / "frames.json")
    frames = artifacts.read(tmp_path / "frames.json", ("frames",))
    pictures = [toned(read_picture(frames.member(frames.fields["frames"][key]["suffix"]))) for key in (0, 4, 8)]
    keys = write_frames(tmp_path / "keys.json", pictures, [0, 4, 8])
    parts = [tmp_path / f"part{number}.json" for number in (0, 1)]
    made = {}
    for number, part in enumerate(parts):
        made |= propagate(tmp_path / "frames.json", keys, "--engine", "warp", "--part", number, "--parts", 2, output=part)
    stage("concat", *parts, "--source", source, "--crf", 1, "--output", tmp_path / "film.mp4")
    film = artifacts.read(tmp_path / "film.mp4", ("film",))
    assert (film.fields["num_frames"], film.fields["fps"]) == (9, "12/1")
    assert film.fields["parts"] == [{"name": "part0.json", "frames": 4}, {"name": "part1.json", "frames": 5}]
    assert probe(tmp_path / "film.mp4").has_audio and probe(tmp_path / "film.mp4").fps == 12
    shown = [frame.rgb for frame in read.frames(tmp_path / "film.mp4")]
    assert [max(made, key=lambda index: psnr(picture, made[index])) for picture in shown] == list(range(9))
    stage("concat", *parts, "--output", tmp_path / "silent.mp4")
    assert not probe(tmp_path / "silent.mp4").has_audio
    said = stage("concat", *parts, "--prompts-log", "--output", tmp_path / "film.mp4", fails=1)
    assert "have no prompts: leave --prompts-log out" in said
    said = stage("concat", *reversed(parts), "--output", tmp_path / "film.mp4", fails=1)
    assert "part0.json begins at frame 0, " in said and "give the parts of one clip in order" in said


def test_what_does_not_go_together_is_one_sentence(tmp_path):
    frames, keys = write_clip(tmp_path, panning(4), [0, 3])

    def said(frames, keys, *arguments):
        (line,) = [line for line in propagate(frames, keys, *arguments, fails=1).splitlines() if not line.startswith("{")]
        return line

    some = write_frames(tmp_path / "some.json", panning(2), [1, 3])
    assert "some.json does not hold every frame of a clip: make it with extract_frames --select all" in said(some, keys)
    large = write_frames(tmp_path / "large.json", panning(1, size=(128, 64)), [0])
    assert "the keys of" in said(frames, large) and "are 128x64, the frames 96x64" in said(frames, large)
    late = write_frames(tmp_path / "late.json", panning(1), [4])
    assert "has a key at frame 4, the clip has 4 frames" in said(frames, late)
    none = write_frames(tmp_path / "none.json", [])
    assert "none.json holds no keys" in said(frames, none)
    assert "part is 2 of 2 parts: they are counted from 0" in said(frames, keys, "--part", 2, "--parts", 2)
    assert "does not exist" in said(frames, tmp_path / "nowhere.json")


def test_without_the_program_ebsynth_the_job_says_so(tmp_path, monkeypatch):
    files = write_clip(tmp_path, panning(2), [0])
    monkeypatch.setenv("PATH", str(tmp_path))
    said = propagate(*files, "--engine", "ebsynth", fails=1)
    assert "error: there is no program ebsynth on the PATH: install it, or take engine auto" in said


def test_keys_are_asked_for(tmp_path):
    said = stage("propagate", tmp_path / "frames.json", "--output", tmp_path / "out.json", fails=2)
    assert "has no keys: propagate reads frames, keys" in said
