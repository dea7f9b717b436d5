"""`propagate` as a user runs it: the number and order of frames, and the messages for inputs that do not match."""

import numpy as np
import pytest

from stages.media import read
from stages.media.probe import probe
from stages.media.read import read_image
from stages.media.write import write_png
from stages.runtime import artifacts
from tests import zoo
from tests.commands import stage
from tests.media.propagate.scenes import layered_scene, panning, psnr, restyle


def write_frames(path, images, indices=None):
    """Write a `frames` artifact of images, uint8 [H, W, 3], at their indices in the video."""
    listed = []
    for index, image in zip(indices if indices is not None else range(len(images)), images):
        suffix = f"/{index:06d}.png"
        artifacts.member_path(path, suffix).parent.mkdir(exist_ok=True)
        write_png(artifacts.member_path(path, suffix), image)
        listed.append({"index": index, "time": index / 10, "suffix": suffix})
    height, width = images[0].shape[:2] if images else (64, 96)
    fields = {"width": width, "height": height, "select": "all", "frames": listed, "source": {"fps": "10"}}
    artifacts.write_index(path, "frames", fields, [frame["suffix"] for frame in listed])
    return path


def write_clip(folder, images, keys):
    """Write the artifacts of a clip and of its translated keys."""
    return (
        write_frames(folder / "frames.json", images),
        write_frames(folder / "keys.json", [restyle(images[key]) for key in keys], keys),
    )


def propagate(frames, keys, *arguments, output=None, fails=0):
    """Run `propagate` and return its images by index, or its standard error if it fails."""
    output = output or frames.parent / "out.json"
    stderr = stage("propagate", frames, "--keys", keys, "--output", output, *arguments, fails=fails)
    if fails:
        return stderr
    artifact = artifacts.read(output, ("propagated",))
    return {frame["index"]: read_image(artifact.member(frame["suffix"])) for frame in artifact.fields["frames"]}


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
def test_propagate_gives_exactly_the_frames_of_the_clip(tmp_path, engine, count, keys):
    images = panning(count)
    propagated = propagate(*write_clip(tmp_path, images, keys), "--engine", engine)
    assert list(propagated) == list(range(count))
    for key in keys:
        assert np.array_equal(propagated[key], restyle(images[key]))
    for index, image in propagated.items():
        assert psnr(image[6:-6, 10:-10], restyle(images[index])[6:-6, 10:-10]) > 25


@pytest.mark.parametrize("parts", [1, 2, 3, 9])
@pytest.mark.parametrize(
    ("count", "keys"),
    [(7, [0, 3, 5]), (7, [1, 3, 6]), (7, [0, 2, 4, 6]), (4, [2]), (3, [0, 1, 2])],
    ids=["a tail", "a head", "ends are keys", "one key", "all are keys"],
)
def test_propagate_parts_together_are_the_clip(tmp_path, count, keys, parts):
    files = write_clip(tmp_path, panning(count), keys)
    whole = propagate(*files, "--engine", "warp")
    results = [
        propagate(*files, "--engine", "warp", "--part", part, "--parts", parts, output=tmp_path / f"part{part}.json")
        for part in range(parts)
    ]
    assert [index for part in results for index in part] == list(range(count))
    for part in results:
        for index, image in part.items():
            assert np.array_equal(image, whole[index])


def test_propagate_takes_frames_from_extract_frames(tmp_path):
    stage("extract_frames", zoo.plain(tmp_path), "--select", "all", "--output", tmp_path / "frames.json")
    frames = artifacts.read(tmp_path / "frames.json", ("frames",))
    keys = [0, 16, 32]
    images = [restyle(read_image(frames.member(frames.fields["frames"][key]["suffix"]))) for key in keys]
    write_frames(tmp_path / "keys.json", images, keys)
    propagated = propagate(tmp_path / "frames.json", tmp_path / "keys.json", "--engine", "warp")
    assert list(propagated) == list(range(zoo.FRAMES))
    written = artifacts.read(tmp_path / "out.json", ("propagated",))
    assert [frame["time"] for frame in written.fields["frames"]] == [frame["time"] for frame in frames.fields["frames"]]
    assert written.fields["source"] == frames.fields["source"] and written.fields["keys"] == keys


@pytest.mark.parametrize("poisson", [[], ["--no-poisson"]])
def test_propagate_with_two_keys_is_better_than_with_one(tmp_path, poisson):
    images = layered_scene(7)
    two = propagate(*write_clip(tmp_path, images, [0, 6]), *poisson)
    one = propagate(tmp_path / "frames.json", write_frames(tmp_path / "first.json", [restyle(images[0])]))
    for index in (4, 5):
        assert psnr(two[index], restyle(images[index])) > psnr(one[index], restyle(images[index]))


def test_propagated_parts_become_a_film_with_the_rate_and_sound_of_the_source(tmp_path):
    source = zoo.plain(tmp_path, frames=9, fps=12, sound=1)
    stage("extract_frames", source, "--select", "all", "--output", tmp_path / "frames.json")
    frames = artifacts.read(tmp_path / "frames.json", ("frames",))
    images = [restyle(read_image(frames.member(frames.fields["frames"][key]["suffix"]))) for key in (0, 4, 8)]
    keys = write_frames(tmp_path / "keys.json", images, [0, 4, 8])
    parts = [tmp_path / f"part{number}.json" for number in (0, 1)]
    propagated = {}
    for number, part in enumerate(parts):
        propagated |= propagate(
            tmp_path / "frames.json", keys, "--engine", "warp", "--part", number, "--parts", 2, output=part
        )
    stage("concat", *parts, "--source", source, "--crf", 1, "--output", tmp_path / "film.mp4")
    film = artifacts.read(tmp_path / "film.mp4", ("film",))
    assert (film.fields["num_frames"], film.fields["fps"]) == (9, "12/1")
    assert film.fields["parts"] == [{"name": "part0.json", "frames": 4}, {"name": "part1.json", "frames": 5}]
    assert probe(tmp_path / "film.mp4").has_audio and probe(tmp_path / "film.mp4").fps == 12
    film_frames = [frame.rgb for frame in read.frames(tmp_path / "film.mp4")]
    assert [max(propagated, key=lambda index: psnr(image, propagated[index])) for image in film_frames] == list(range(9))
    stage("concat", *parts, "--output", tmp_path / "silent.mp4")
    assert not probe(tmp_path / "silent.mp4").has_audio
    stderr = stage("concat", *parts, "--prompts-log", "--output", tmp_path / "film.mp4", fails=1)
    assert "has no prompts to log: leave --prompts-log out" in stderr
    stderr = stage("concat", *reversed(parts), "--output", tmp_path / "film.mp4", fails=1)
    assert "part0.json begins at frame 0, " in stderr and "give the parts of one clip in order" in stderr


def test_propagate_refuses_inputs_that_do_not_match_in_one_sentence(tmp_path):
    frames, keys = write_clip(tmp_path, panning(4), [0, 3])

    def refusal(frames, keys, *arguments):
        (line,) = [line for line in propagate(frames, keys, *arguments, fails=1).splitlines() if not line.startswith("{")]
        return line

    some = write_frames(tmp_path / "some.json", panning(2), [1, 3])
    assert "some.json does not hold every frame of a clip: make it with extract_frames --select all" in refusal(some, keys)
    large = write_frames(tmp_path / "large.json", panning(1, size=(128, 64)), [0])
    assert "the keys of" in refusal(frames, large) and "are 128x64, the frames 96x64" in refusal(frames, large)
    late = write_frames(tmp_path / "late.json", panning(1), [4])
    assert "has a key at frame 4, the clip has 4 frames" in refusal(frames, late)
    none = write_frames(tmp_path / "none.json", [])
    assert "none.json holds no keys" in refusal(frames, none)
    assert "part is 2 of 2 parts: set 0 to parts - 1" in refusal(frames, keys, "--part", 2, "--parts", 2)
    assert "does not exist" in refusal(frames, tmp_path / "nowhere.json")


def test_propagate_without_the_program_ebsynth_fails_the_job(tmp_path, monkeypatch):
    files = write_clip(tmp_path, panning(2), [0])
    monkeypatch.setenv("PATH", str(tmp_path))
    stderr = propagate(*files, "--engine", "ebsynth", fails=1)
    assert "error: there is no program ebsynth on the PATH: install it, or set --engine auto" in stderr


def test_propagate_without_keys_is_a_usage_error(tmp_path):
    stderr = stage("propagate", tmp_path / "frames.json", "--output", tmp_path / "out.json", fails=2)
    assert "has no keys: propagate reads frames, keys" in stderr
