"""`extract_frames` as a user runs it: which frames, how large, and what it says to files that are not whole."""

import cv2
import numpy as np
import pytest

from stages.media.fit import fit_image
from stages.media.read import frames, read_picture
from stages.media.select import keyframe_indices, motion_of
from stages.runtime import artifacts
from tests import zoo
from tests.commands import stage
from tests.records import fields


def extract(video, folder, *arguments, fails=0):
    """The artifact of a run, or what it complained of."""
    output = folder / "out" / "frames.json"
    said = stage("extract_frames", video, "--output", output, *arguments, fails=fails)
    return said if fails else artifacts.read(output, ("frames",))


def pictures(artifact):
    return [read_picture(artifact.member(frame["suffix"])) for frame in artifact.fields["frames"]]


@pytest.mark.parametrize(
    ("arguments", "indices"),
    [
        ([], [32]),
        (["--select", "tail", "--count", 3], [30, 31, 32]),
        (["--select", "segments", "--count", 4], [4, 12, 20, 28]),
        (["--select", "first", "--count", 2], [0, 1]),
        (["--select", "all"], list(range(33))),
        (["--select", "keyframes", "--mininterv", 10, "--maxinterv", 10], [0, 10, 20, 30, 32]),
    ],
    ids=["last", "tail", "segments", "first", "all", "keyframes"],
)
def test_the_frames_that_are_asked_for(tmp_path, arguments, indices):
    artifact = extract(zoo.plain(tmp_path), tmp_path, *arguments)
    assert [frame["index"] for frame in artifact.fields["frames"]] == indices
    assert [frame["time"] for frame in artifact.fields["frames"]] == pytest.approx([index / zoo.FPS for index in indices])
    assert len(artifact.members) == len(indices)


def test_keyframes_follow_the_motion(tmp_path):
    artifact = extract(
        zoo.plain(tmp_path), tmp_path, "--select", "keyframes", "--size", "64*64", "--mininterv", 3, "--maxinterv", 8
    )
    shown = [fit_image(frame.rgb, (64, 64), "crop") for frame in frames(tmp_path / "plain.mp4")]
    expected = keyframe_indices(motion_of(shown), 3, 8)
    assert [frame["index"] for frame in artifact.fields["frames"]] == expected
    assert all(np.array_equal(picture, shown[index]) for index, picture in zip(expected, pictures(artifact)))


def test_hard_edges_come_with_the_frames(tmp_path):
    artifact = extract(zoo.plain(tmp_path), tmp_path, "--select", "first", "--count", 2, "--canny")
    edges = [read_picture(artifact.member(frame["canny"])) for frame in artifact.fields["frames"]]
    for rgb, seen in zip(pictures(artifact), edges, strict=True):
        assert seen.any() and np.array_equal(seen, np.repeat(cv2.Canny(rgb, 50, 100)[..., None], 3, axis=-1))


def test_the_last_frame_has_the_colours_of_the_formula(tmp_path):
    video = zoo.plain(tmp_path)
    (picture,) = pictures(extract(video, tmp_path))
    expected = zoo.rgb_by_formula(video)[-1]
    assert np.abs(picture - expected).mean() < 0.7


@pytest.mark.parametrize(
    ("fit", "size"), [("crop", (64, 64)), ("pad", (64, 64)), ("area", (80, 48))], ids=["crop", "pad", "area"]
)
def test_the_size_that_is_asked_for(tmp_path, fit, size):
    artifact = extract(zoo.plain(tmp_path), tmp_path, "--size", "64*64", "--fit", fit)
    assert (artifact.fields["width"], artifact.fields["height"]) == size
    (picture,) = pictures(artifact)
    assert picture.shape == (*size[::-1], 3)
    assert (fit == "pad") == (picture[0].max() == 0)  # black bars


def test_a_truncated_video_is_refused_unless_allowed(tmp_path):
    video = zoo.truncated(tmp_path)
    said = extract(video, tmp_path, fails=1)
    assert "is truncated or damaged" in said and "Traceback" not in said
    assert not (tmp_path / "out" / "frames.json").exists()
    whole = extract(video, tmp_path, "--allow-truncated", "--select", "all")
    assert 0 < len(whole.fields["frames"]) < zoo.FRAMES


def test_the_first_frames_of_a_truncated_video_too(tmp_path):
    video = zoo.truncated(tmp_path)
    allowed = extract(video, tmp_path, "--select", "first", "--count", 40, "--allow-truncated")
    assert 0 < len(allowed.fields["frames"]) < zoo.FRAMES


def test_the_last_frame_of_a_clip_of_ours_can_be_taken_too(tmp_path):
    video = zoo.plain(tmp_path, "clip.mp4")
    artifacts.write_index(tmp_path / "clip.json", "clip", fields("clip"), [".mp4"])
    assert np.array_equal(*pictures(extract(tmp_path / "clip.json", tmp_path)), *pictures(extract(video, tmp_path)))
