import re
from fractions import Fraction

import av
import numpy as np
import pytest

from stages.media.fit import fit_image
from stages.media.join import at_constant_rate, join
from stages.media.probe import probe
from stages.media.read import Frame, Truncated, frames
from stages.media.write import VideoWriter
from stages.runtime.errors import ItemError, UsageError
from tests import zoo

SIZE = (96, 64)


def part(path, greys):
    """Write a lossless part whose frames are flat greys, so that each can be recognised in any film."""
    with VideoWriter(path, *SIZE, 16, codec="lossless") as video:
        for grey in greys:
            video.write(np.full((SIZE[1], SIZE[0], 3), grey, dtype=np.uint8))
    return path


def frame_greys(path) -> list[int]:
    return [round(float(frame.rgb.mean())) for frame in frames(path)]


@pytest.mark.parametrize("fps", [16, 24, Fraction(30000, 1001)])
def test_join_leaves_out_the_repeated_frame_at_a_seam(tmp_path, fps):
    parts = [part(tmp_path / f"{k}.mkv", range(20 + 40 * k, 61 + 40 * k, 5)) for k in range(3)]
    film = join(parts, tmp_path / "film.mp4", fps=fps)
    assert (film.frames, film.source_frames, film.part_frames, film.has_audio) == (25, 0, [9, 8, 8], False)
    assert frame_greys(tmp_path / "film.mp4") == pytest.approx(list(range(20, 141, 5)), abs=1)
    source = probe(tmp_path / "film.mp4")
    assert source.fps == fps and source.constant_rate and source.size == SIZE


def times(path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return sorted(p.pts * p.time_base for p in container.demux(video=0) if p.pts is not None)


def test_join_writes_exact_frame_times(tmp_path):
    parts = [part(tmp_path / f"{k}.mkv", range(20, 190, 10)) for k in range(3)]
    join(parts, tmp_path / "film.mp4", fps=16)
    assert times(tmp_path / "film.mp4") == [Fraction(n, 16) for n in range(49)]


def test_join_fits_a_source_in_front_and_keeps_its_sound(tmp_path):
    source = zoo.plain(tmp_path, "source.mp4", fps=24, frames=49, sound=6)
    film = join([part(tmp_path / "p.mkv", range(50, 68, 2))], tmp_path / "film.mp4", fps=16, source=source, fit="crop")
    assert film.source_frames == round(49 / 24 * 16) and film.part_frames == [8] and film.has_audio
    decoded = [frame.rgb for frame in frames(tmp_path / "film.mp4")]
    assert len(decoded) == film.frames
    original = [frame.rgb for frame in frames(source)]
    for tick, nearest in ((0, 0), (8, 12), (film.source_frames - 1, 48)):
        apart = [np.abs(decoded[tick].astype(int) - fit_image(rgb, SIZE, "crop")).mean() for rgb in original]
        assert np.argmin(apart) == nearest and apart[nearest] < 15
    with av.open(str(tmp_path / "film.mp4")) as container:
        (sound,) = container.streams.audio
        assert sound.codec_context.name == "aac"
        assert float(sound.duration * sound.time_base) == pytest.approx(film.source_frames / 16, abs=0.025)


def test_join_keeps_sound_and_video_in_sync(tmp_path):
    """A click at 1.0 s of the source is at 1.0 s of the film, although the video of the source starts late."""
    source, late = tmp_path / "source.mp4", tmp_path / "late.mp4"
    click = "aevalsrc=exprs='if(between(t,1,1.05),sin(6000*t),0)':duration=3"
    video = "testsrc2=size=96x64:rate=16:duration=2"
    zoo.ffmpeg("-f", "lavfi", "-i", video, "-f", "lavfi", "-i", click, "-c:v", "libx264", "-c:a", "aac", source)
    zoo.ffmpeg("-itsoffset", "0.5", "-i", source, "-i", source, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    for path, expected in ((source, 1.0), (late, 0.5)):
        join([part(tmp_path / "p.mkv", [9, 99])], tmp_path / "film.mp4", fps=16, source=path)
        raw = zoo.ffmpeg("-i", tmp_path / "film.mp4", "-map", "0:a", "-ac", "1", "-ar", "16000", "-f", "f32le", "-")
        loud = np.flatnonzero(np.abs(np.frombuffer(raw, np.float32)) > 0.2)
        assert loud[0] / 16000 == pytest.approx(expected, abs=0.03)


def test_join_adds_no_sound_to_a_silent_source(tmp_path):
    film = join([part(tmp_path / "p.mkv", [1, 2])], tmp_path / "film.mp4", fps=16, source=zoo.plain(tmp_path))
    assert not film.has_audio and not probe(tmp_path / "film.mp4").has_audio


@pytest.mark.parametrize("fps", [10, 16, 24, 25, 60])
@pytest.mark.parametrize("maker", [zoo.plain, zoo.varying_rate])
def test_at_constant_rate_agrees_with_the_fps_filter_of_ffmpeg(tmp_path, maker, fps):
    source = maker(tmp_path)
    fast = [frame.rgb for frame in frames(source, accurate=False)]
    source_frames = [Frame(frame.index, frame.time, frame.index) for frame in frames(source)]
    end = source_frames[-1].time + 1 / zoo.FPS
    converted = list(at_constant_rate(source_frames, Fraction(fps), end))
    truth = zoo.rgb_by_ffmpeg(source, filters=f"fps={fps}")
    nearest = [min(range(len(fast)), key=lambda n: np.abs(fast[n].astype(int) - rgb).sum()) for rgb in truth]
    assert converted[: len(nearest)] == nearest
    # the filter may round the last frame away, but a seam needs it
    assert converted[len(nearest) :] in ([], [zoo.FRAMES - 1])


def test_join_refuses_unsuitable_parts(tmp_path):
    one = part(tmp_path / "one.mkv", [1, 2])
    other = zoo.plain(tmp_path)
    with pytest.raises(UsageError, match="no parts"):
        join([], tmp_path / "film.mp4", fps=16)
    with pytest.raises(ItemError, match="128x96"):
        join([one, other], tmp_path / "film.mp4", fps=16)
    with pytest.raises(ItemError, match="only the frame"):
        join([one, part(tmp_path / "single.mkv", [2])], tmp_path / "film.mp4", fps=16)
    with pytest.raises(Truncated):
        join([one], tmp_path / "film.mp4", fps=16, source=zoo.truncated(tmp_path))


def test_a_wrong_declared_duration_does_not_lengthen_the_film(tmp_path, capsys):
    source = tmp_path / "source.mkv"
    options = ("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=16:duration=2", "-f", "lavfi", "-i", "sine=duration=2")
    zoo.ffmpeg(*options, "-c:v", "libx264", "-c:a", "aac", source)
    source.write_bytes(re.sub(rb"00:00:0\d\.", b"95:00:00.", source.read_bytes()))  # the tags of its streams
    assert probe(source).duration > 95 * 3600
    film = join([part(tmp_path / "p.mkv", [9, 99])], tmp_path / "film.mp4", fps=16, source=source)
    assert (film.source_frames, film.part_frames) == (32, [1])
    assert "its declared duration is 3 days, 23:00:00 and its last frame is at 0:00:02" in capsys.readouterr().err


def test_join_refuses_a_film_of_too_many_frames_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.media.join.MAX_FRAMES", 20)
    with pytest.raises(ItemError, match="lasts 0:00:02, and a video has 20 frames at most"):
        source = zoo.plain(tmp_path, fps=24, frames=49)
        join([part(tmp_path / "p.mkv", [9, 99])], tmp_path / "film.mp4", fps=16, source=source)
    assert not (tmp_path / "film.mp4").exists()
