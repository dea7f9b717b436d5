"""`extract_frames` as a user runs it: the selected frames, their size, and the messages for truncated files."""

import cv2
import numpy as np
import pytest
from PIL import Image

from stages.media.fit import fit_image
from stages.media.read import frames, read_image
from stages.media.select import frame_motion, keyframe_indices
from stages.runtime import artifacts
from tests import zoo
from tests.commands import stage
from tests.records import fields


def extract(video, folder, *arguments, fails=0):
    """Run `extract_frames` and return its artifact, or its standard error if it fails."""
    output = folder / "out" / "frames.json"
    stderr = stage("extract_frames", video, "--output", output, *arguments, fails=fails)
    return stderr if fails else artifacts.read(output, ("frames",))


def read_images(artifact):
    return [read_image(artifact.member(frame["suffix"])) for frame in artifact.fields["frames"]]


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
def test_extract_frames_selects_the_requested_frames(tmp_path, arguments, indices):
    artifact = extract(zoo.plain(tmp_path), tmp_path, *arguments)
    assert [frame["index"] for frame in artifact.fields["frames"]] == indices
    assert [frame["time"] for frame in artifact.fields["frames"]] == pytest.approx([index / zoo.FPS for index in indices])
    assert len(artifact.members) == len(indices)


def test_extract_frames_selects_keyframes_by_motion(tmp_path):
    artifact = extract(
        zoo.plain(tmp_path), tmp_path, "--select", "keyframes", "--size", "64*64", "--mininterv", 3, "--maxinterv", 8
    )
    fitted = [fit_image(frame.rgb, (64, 64), "crop") for frame in frames(tmp_path / "plain.mp4")]
    expected = keyframe_indices(frame_motion(fitted), 3, 8)
    assert [frame["index"] for frame in artifact.fields["frames"]] == expected
    assert all(np.array_equal(image, fitted[index]) for index, image in zip(expected, read_images(artifact)))


def test_extract_frames_writes_canny_edges_with_the_frames(tmp_path):
    artifact = extract(zoo.plain(tmp_path), tmp_path, "--select", "first", "--count", 2, "--canny")
    edges = [read_image(artifact.member(frame["canny"])) for frame in artifact.fields["frames"]]
    for rgb, edge_map in zip(read_images(artifact), edges, strict=True):
        assert edge_map.any() and np.array_equal(edge_map, np.repeat(cv2.Canny(rgb, 50, 100)[..., None], 3, axis=-1))


def test_extract_frames_last_frame_has_the_colours_of_the_formula(tmp_path):
    video = zoo.plain(tmp_path)
    (image,) = read_images(extract(video, tmp_path))
    expected = zoo.rgb_by_formula(video)[-1]
    assert np.abs(image - expected).mean() < 0.7


@pytest.mark.parametrize(
    ("fit", "further", "size"),
    [
        ("crop", (), (64, 64)),
        ("pad", (), (64, 64)),
        ("area", (), (80, 48)),
        ("area", ("--area-rule", "independent"), (64, 48)),
    ],
)
def test_extract_frames_fits_the_requested_size(tmp_path, fit, further, size):
    artifact = extract(zoo.plain(tmp_path), tmp_path, "--size", "64*64", "--fit", fit, *further)
    assert (artifact.fields["width"], artifact.fields["height"]) == size
    (image,) = read_images(artifact)
    assert image.shape == (*size[::-1], 3)
    assert (fit == "pad") == (image[0].max() == 0)  # black bars


@pytest.mark.parametrize("source", [(64, 160), (160, 64), (96, 96), (512, 64)])
def test_extract_frames_with_fit_area_keeps_the_whole_image(tmp_path, source):
    """The sources are a portrait, a landscape, a square and a panorama, each with a mark in every corner."""
    image, side = np.zeros((source[1], source[0], 3), np.uint8), 16
    marks = {(0, 0): (250, 0, 0), (0, -1): (0, 250, 0), (-1, 0): (0, 0, 250), (-1, -1): (250, 250, 250)}
    for (row, column), colour in marks.items():
        image[row * side :, column * side :][:side, :side] = colour
    zoo.encode_images(tmp_path, "corners.mp4", [image] * 2, zoo.H264)
    artifact = extract(tmp_path / "corners.mp4", tmp_path, "--size", "160*96", "--fit", "area", "--multiple", 16)
    width, height = artifact.fields["width"], artifact.fields["height"]
    assert 0.6 < (width / height) / (source[0] / source[1]) < 1.6 and width * height <= 160 * 96
    (fitted,) = read_images(artifact)
    for (row, column), colour in marks.items():
        assert np.abs(fitted[row, column].astype(int) - colour).max() < 60, (row, column)


def test_extract_frames_refuses_a_truncated_video_unless_allowed(tmp_path):
    video = zoo.truncated(tmp_path)
    stderr = extract(video, tmp_path, fails=1)
    assert "is truncated or damaged" in stderr and "Traceback" not in stderr
    assert not (tmp_path / "out" / "frames.json").exists()
    whole = extract(video, tmp_path, "--allow-truncated", "--select", "all")
    assert 0 < len(whole.fields["frames"]) < zoo.FRAMES


def test_extract_frames_refuses_first_frames_of_a_truncated_video(tmp_path):
    video = zoo.truncated(tmp_path)
    allowed = extract(video, tmp_path, "--select", "first", "--count", 40, "--allow-truncated")
    assert 0 < len(allowed.fields["frames"]) < zoo.FRAMES


def test_extract_frames_takes_the_last_frame_of_a_clip_artifact(tmp_path):
    video = zoo.plain(tmp_path, "clip.mp4")
    artifacts.write_index(tmp_path / "clip.json", "clip", fields("clip"), [".mp4"])
    assert np.array_equal(*read_images(extract(tmp_path / "clip.json", tmp_path)), *read_images(extract(video, tmp_path)))


def test_an_image_is_a_video_of_one_frame(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    stage("extract_frames", tmp_path / "a.png", "--select", "tail", "--count", 9, "-o", tmp_path / "f.json")
    (frame,) = artifacts.read(tmp_path / "f.json", ("frames",)).fields["frames"]
    assert np.array_equal(read_image(tmp_path / f"f{frame['suffix']}"), rgb)
    (tmp_path / "b.png").write_bytes(b"none")
    assert "is not a readable image" in stage("extract_frames", tmp_path / "b.png", "-o", tmp_path / "g.json", fails=1)
