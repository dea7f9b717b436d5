import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from stages.media.probe import frame_times, probe
from stages.media.read import frames, read_image
from stages.media.write import VideoWriter, write_png
from stages.runtime.errors import ItemError, JobError, UsageError
from tests import zoo


def noise(count=9, width=66, height=48):
    return list(np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def smooth(count=9, width=160, height=96):
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17 + y / 11), np.cos(x / 13 - y / 23), np.sin((x + y) / 29 + 1)]
    still = np.stack([128 + 100 * wave for wave in waves], axis=-1)
    return [(still + n).clip(0, 255).round().astype(np.uint8) for n in range(count)]


def write(path, images, fps=16, **options):
    height, width = images[0].shape[:2]
    with VideoWriter(path, width, height, fps, **options) as video:
        for rgb in images:
            video.write(rgb)
    return path


@pytest.mark.parametrize("accurate", [True, False])
def test_a_lossless_video_keeps_every_pixel(tmp_path, accurate):
    images = noise(width=67, height=49)
    path = write(tmp_path / "a.mkv", images, codec="lossless")
    decoded = [frame.rgb for frame in frames(path, accurate=accurate)]
    assert np.array_equal(np.stack(decoded), np.stack(images))


@pytest.mark.parametrize("fps", [16, 24, 10, Fraction(30000, 1001), 29.97, 8.5])
def test_a_written_film_has_every_frame_at_exactly_its_rate(tmp_path, fps):
    source = probe(write(tmp_path / "a.mp4", noise(), fps))
    assert source.fps == Fraction(fps).limit_denominator(1001) and source.constant_rate
    assert frame_times(source) == pytest.approx(np.arange(9) / float(fps), abs=1e-4)


def test_a_written_film_is_tagged_and_converted_as_bt709(tmp_path):
    images = smooth()
    path = write(tmp_path / "a.mp4", images, crf=4)
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_primaries, codec.color_trc, codec.color_range) == (1, 1, 1, 1)
        assert codec.pix_fmt == "yuv420p"
    decoded = zoo.rgb_by_formula(path, (160, 96), zoo.BT709)
    shift = (decoded - np.stack(images)).mean(axis=(0, 1, 2))
    assert np.abs(shift).max() < 0.5
    assert np.sqrt(((decoded - np.stack(images)) ** 2).mean()) < 1


def test_a_written_film_has_its_index_in_front(tmp_path):
    data = write(tmp_path / "a.mp4", noise()).read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("codec", ["h264", "lossless"])
def test_writing_the_same_frames_gives_the_same_bytes(tmp_path, codec):
    first = write(tmp_path / "one", noise(), codec=codec).read_bytes()
    assert first == write(tmp_path / "two", noise(), codec=codec).read_bytes()
    assert not re.search(rb"Lav[fc]\d", first)  # no version of the encoder is written either


def test_video_writer_refuses_invalid_sizes_and_rates(tmp_path):
    for bad in ({"width": 67}, {"height": 49}, {"fps": 0}, {"crf": 60}, {"codec": "h266"}):
        with pytest.raises(UsageError):
            VideoWriter(**{"path": tmp_path / "a.mp4", "width": 66, "height": 48, "fps": 16} | bad)
    for bad in (noise(width=64)[0], noise()[0].astype(np.float32)):
        with pytest.raises(ItemError, match="frame 0"), VideoWriter(tmp_path / "a.mp4", 66, 48, 16) as video:
            video.write(bad)
    with pytest.raises(ItemError, match="no frames"), VideoWriter(tmp_path / "a.mp4", 66, 48, 16):
        pass


def test_video_writer_reports_a_full_disk_as_a_job_error(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(JobError, match="No space left on device.*free disk space") as caught:
        write("/dev/full", noise(60, 320, 240), codec="lossless")
    assert "\n" not in str(caught.value)


def test_video_writer_reports_a_missing_folder_as_a_job_error(tmp_path):
    with pytest.raises(JobError, match="No such file or directory"):
        write(tmp_path / "nowhere" / "a.mp4", noise(60, 320, 240))


def test_video_writer_stops_ffmpeg_after_an_exception(tmp_path):
    with pytest.raises(KeyError), VideoWriter(tmp_path / "a.mp4", 66, 48, 16) as video:
        video.write(noise()[0])
        raise KeyError
    assert video._process.poll() is not None


@pytest.mark.parametrize("name", ["-i.mp4", "$(touch x).mp4", "a'b\"c;d.mp4", "two\nlines.mp4", "кино.mp4", "%03d.mp4"])
def test_video_writer_takes_any_file_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(name, noise(3))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(frame_times(probe(name))) == 3


def test_png_round_trip_keeps_every_pixel(tmp_path):
    rgb = noise()[0]
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, rgb)
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_read_image_refuses_a_file_that_is_no_image_in_one_sentence(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    write_png(tmp_path / "cut.png", noise(1, 200, 200)[0])
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    for name in ("absent.png", "text.png", "cut.png"):
        with pytest.raises(ItemError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(ItemError, match="float64"):
        write_png(tmp_path / "a.png", noise()[0] / 255)
    with pytest.raises(JobError, match="nowhere"):
        write_png(tmp_path / "nowhere" / "a.png", noise()[0])
