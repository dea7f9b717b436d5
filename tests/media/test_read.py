import cv2
import numpy as np
import pytest

from stages.media.probe import probe
from stages.media.read import Truncated, frames
from tests import zoo
from tests.zoo import BT601, BT709


def read(path, **options) -> np.ndarray:
    return np.stack([frame.rgb for frame in frames(path, **options)])


def smooth_image(width, height) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.sin(x / 70 + y / 40), np.cos(x / 55 - y / 90), np.sin((x + y) / 110 + 1)
    return np.stack([128 + 110 * wave for wave in waves], axis=-1).round().astype(np.uint8)


def encode_video(path, image, matrix, range_="tv", tagged=True):
    height, width = image.shape[:2]
    tags = ["-colorspace", matrix, "-color_range", range_] if tagged else []
    scale = f"scale=out_color_matrix={matrix}:out_range={range_}:flags=accurate_rnd+full_chroma_int+full_chroma_inp"
    pipe = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "16", "-i", "-"]
    coding = ["-vf", f"{scale},format=yuv420p", "-c:v", "libx264", "-crf", "10", *tags, path]
    # -nostdin in that call only disables interaction
    zoo.ffmpeg(*pipe, *coding, input=image.tobytes() * 2)
    return path


@pytest.mark.parametrize(
    ("size", "matrix", "weights", "range_", "tagged"),
    [
        ((640, 360), "bt709", BT709, "tv", True),
        ((640, 360), "smpte170m", BT601, "tv", True),
        ((640, 360), "bt709", BT709, "pc", True),
        ((640, 360), "smpte170m", BT601, "tv", False),  # untagged: BT.601 in standard definition
        ((1280, 720), "bt709", BT709, "tv", False),  # and BT.709 in high definition
    ],
)
def test_accurate_frames_agree_with_the_formula(tmp_path, size, matrix, weights, range_, tagged):
    image = smooth_image(*size)
    path = encode_video(tmp_path / "smooth.mp4", image, matrix, range_, tagged)
    decoded = read(path).astype(np.float64)
    truth = zoo.rgb_by_formula(path, size, weights, full_range=range_ == "pc")
    assert np.abs((decoded - truth).mean(axis=(0, 1, 2))).max() < 0.1
    assert np.abs(decoded - truth).max() < 1.5
    if range_ == "tv":  # ffmpeg itself writes full range 0.8 levels too dark
        assert np.abs((decoded - image).mean(axis=(0, 1, 2))).max() <= 0.2


@pytest.mark.parametrize(("name", "size"), [("clip-10s.mp4", (854, 480)), ("boxer.mp4", (480, 480))])
def test_accurate_frames_of_real_clips_agree_with_the_formula(name, size, tmp_path):
    few = tmp_path / "few.mp4"
    zoo.ffmpeg("-i", zoo.real_clip(name), "-frames:v", 8, "-c", "copy", few)
    decoded, truth = read(few).astype(np.float64), zoo.rgb_by_formula(few, size)
    assert len(decoded) == len(truth)
    assert np.abs((decoded - truth).mean(axis=(0, 1, 2))).max() < 0.1
    assert np.sqrt(((decoded - truth) ** 2).mean()) < 0.5


def test_fast_conversion_is_close_to_the_accurate_one(tmp_path):
    path = encode_video(tmp_path / "smooth.mp4", smooth_image(640, 360), "bt709")
    assert np.abs(read(path, accurate=False).astype(float) - read(path)).mean() < 3


@pytest.mark.parametrize("name", ["b.mp4", "b.mkv", "b.ts", "b.nut", "b.avi", "b.flv"])
def test_read_gives_all_frames_in_order(tmp_path, name):
    path = zoo.plain(tmp_path, name)
    decoded = list(frames(path))
    assert [frame.index for frame in decoded] == list(range(zoo.FRAMES))
    assert [frame.time for frame in decoded] == pytest.approx(np.arange(zoo.FRAMES) / zoo.FPS, abs=2e-3)
    assert np.abs(np.stack([frame.rgb for frame in decoded]) - zoo.rgb_by_formula(path)).max() < 1.5


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_read_turns_rotated_videos_upright(tmp_path, degrees):
    path = zoo.rotated(tmp_path, degrees)
    decoded = read(path)
    assert np.abs(decoded - np.rot90(zoo.rgb_by_formula(path), degrees // 90, axes=(1, 2))).max() < 1.5
    shown_by_ffmpeg = zoo.rgb_by_ffmpeg(path, probe(path).size)
    assert decoded.shape == shown_by_ffmpeg.shape
    assert np.abs(decoded.astype(int) - shown_by_ffmpeg).mean() < 15  # a wrong turn is off by more than 50


def test_read_makes_pixels_square(tmp_path):
    path, size = zoo.anamorphic(tmp_path), (zoo.WIDTH * 3 // 2, zoo.HEIGHT)
    truth = [cv2.resize(rgb, size, interpolation=cv2.INTER_LINEAR) for rgb in zoo.rgb_by_formula(path)]
    decoded = read(path)
    assert decoded.shape[1:] == (size[1], size[0], 3)
    assert np.abs(decoded - np.stack(truth)).mean() < 1


def test_read_takes_ten_bit_videos(tmp_path):
    path = zoo.ten_bit(tmp_path)
    decoded, truth = read(path), zoo.rgb_by_formula(path, bits=10)
    assert decoded.dtype == np.uint8 and decoded.shape == truth.shape
    assert np.abs((decoded - truth).mean(axis=(0, 1, 2))).max() < 0.1
    assert np.abs(decoded - truth).max() < 2


def test_read_takes_odd_sides(tmp_path):
    path = zoo.odd_size(tmp_path)
    decoded, truth = read(path), zoo.rgb_by_formula(path, (125, 93))
    assert decoded.shape == truth.shape
    assert np.abs((decoded - truth).mean(axis=(0, 1, 2))).max() < 0.3
    assert np.abs(decoded - truth).mean() < 5  # FFV1 does not state its chroma location


def test_read_gives_the_times_of_a_varying_rate(tmp_path):
    times = [frame.time for frame in frames(zoo.varying_rate(tmp_path))]
    assert times == pytest.approx([(n + 2 * (n // 5)) / zoo.FPS for n in range(zoo.FRAMES)], abs=1e-3)


@pytest.mark.parametrize("maker", [zoo.truncated, zoo.truncated_fragments, zoo.truncated_matroska])
def test_read_gives_the_good_frames_of_a_truncated_video_then_fails(tmp_path, maker):
    path = maker(tmp_path)
    whole = read(path.with_name(path.name.removeprefix("cut_")))
    good = []
    with pytest.raises(Truncated) as caught:
        for frame in frames(path):
            good.append(frame)
    assert 5 < len(good) == caught.value.decoded < caught.value.declared <= zoo.FRAMES
    assert f"{len(good)} of {caught.value.declared} frames" in str(caught.value)
    for frame in good:
        assert np.array_equal(frame.rgb, whole[round(frame.time * zoo.FPS)])


def test_a_stream_copied_excerpt_is_not_reported_as_truncated(tmp_path):
    path, excerpt = zoo.plain(tmp_path, sound=2), tmp_path / "excerpt.mp4"
    zoo.ffmpeg("-ss", "0.4", "-i", path, "-t", "1", "-c", "copy", excerpt)
    assert sum(1 for _ in frames(excerpt)) == len(zoo.rgb_by_ffmpeg(excerpt))
