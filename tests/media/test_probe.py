from fractions import Fraction

import pytest

from stages.media import probe as probing
from stages.media.probe import frame_times, probe
from stages.runtime.errors import ItemError
from tests import zoo


def test_probe_describes_a_plain_video(tmp_path):
    source = probe(zoo.plain(tmp_path))
    assert source.size == (zoo.WIDTH, zoo.HEIGHT)
    assert source.fps == zoo.FPS and source.constant_rate
    assert source.duration == pytest.approx(zoo.FRAMES / zoo.FPS, abs=1e-3)
    assert (source.codec, source.pix_fmt, source.bit_depth) == ("h264", "yuv420p", 8)
    assert not source.has_audio and not source.interlaced
    assert (source.rotation, source.mirrored, source.sample_aspect) == (0, False, 1)


def test_probe_describes_odd_videos(tmp_path):
    quarter = probe(zoo.rotated(tmp_path, 90))
    assert quarter.size == (zoo.HEIGHT, zoo.WIDTH) and quarter.rotation == 270
    wide = probe(zoo.anamorphic(tmp_path))
    assert wide.size == (zoo.WIDTH * 3 // 2, zoo.HEIGHT) and wide.sample_aspect == Fraction(3, 2)
    assert not probe(zoo.varying_rate(tmp_path)).constant_rate
    assert probe(zoo.ten_bit(tmp_path)).bit_depth == 10
    assert probe(zoo.with_sound(tmp_path)).has_audio
    hdr = probe(zoo.hdr(tmp_path))
    assert (hdr.color_space, hdr.color_range, hdr.color_trc, hdr.color_primaries) == ("bt2020", "limited", "pq", "bt2020")


def test_probe_duration_excludes_sound_beyond_the_video(tmp_path):
    for name in ("longer.mp4", "longer.mkv"):
        source = probe(zoo.plain(tmp_path, name, sound=9))
        assert source.duration == pytest.approx(zoo.FRAMES / zoo.FPS, abs=0.002)


@pytest.mark.parametrize("fps", ["24", "30000/1001", "10"])
@pytest.mark.parametrize("name", ["rate.mp4", "rate.mkv"])
def test_probe_sees_a_constant_rate_despite_a_coarse_clock(tmp_path, fps, name):
    source = probe(zoo.plain(tmp_path, name, fps=fps))
    assert source.constant_rate and source.fps == Fraction(fps)


def test_frame_times_are_read_without_decoding(tmp_path):
    times = frame_times(probe(zoo.varying_rate(tmp_path)))
    assert times == pytest.approx([(n + 2 * (n // 5)) / zoo.FPS for n in range(zoo.FRAMES)], abs=1e-3)


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (lambda folder: folder / "absent.mp4", "no video file"),
        (zoo.sound_only, "sound only"),
        (zoo.no_frames, "no frames|no video stream|not a readable video"),
        (zoo.no_index, "moov"),
        (zoo.playlist, "not a readable video"),
    ],
)
def test_probe_reports_damage_in_one_sentence(tmp_path, maker, message):
    path = maker(tmp_path)
    with pytest.raises(ItemError, match=message) as caught:
        probe(path)
    assert str(path) in str(caught.value) and caught.value.remedy
    assert "\n" not in str(caught.value)


def test_probe_refuses_text_and_empty_files(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "empty.mp4"):
        with pytest.raises(ItemError, match=name):
            probe(tmp_path / name)


def test_probe_refuses_an_absurd_size(tmp_path, monkeypatch):
    path = zoo.plain(tmp_path)
    monkeypatch.setattr(probing, "MAX_PIXELS", zoo.WIDTH * zoo.HEIGHT - 1)
    with pytest.raises(ItemError, match="128x96 pixels"):
        probe(path)


HOSTILE = ["-i.mp4", "$(touch x).mp4", "a'b\"c;d.mp4", "two\nlines.mp4", "кино 映画.mp4", "http:x.mp4", "%03d.mp4"]


@pytest.mark.parametrize("name", HOSTILE)
def test_probe_takes_any_file_name(tmp_path, monkeypatch, name):
    zoo.plain(tmp_path, name, frames=3)
    monkeypatch.chdir(tmp_path)
    assert len(frame_times(probe(name))) == 3
