"""The sound of a source is in the film at the right time, whatever the file is like. No sound track stops a film."""

import av
import numpy as np
import pytest

from stages.media.join import assemble, join
from stages.media.probe import probe
from stages.media.read import frames
from stages.media.sound import Sound, check_sound, find_sound
from stages.media.write import VideoWriter
from stages.runtime.errors import ItemError
from tests import zoo
from tests.commands import stage

VIDEO = ("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=12:duration=2")
TONE = ("-f", "lavfi", "-i", "sine=frequency=440:duration=2")
LOUD = 1 / 8 / 2**0.5  # the peak of that tone in each of two channels
H264 = ("-c:v", "libx264", "-bf", "2", "-pix_fmt", "yuv420p")


@pytest.fixture
def part(tmp_path):
    with VideoWriter(tmp_path / "part.mkv", 96, 64, 12, codec="lossless") as video:
        for grey in (10, 20, 30):
            video.write(np.full((64, 96, 3), grey, np.uint8))
    return tmp_path / "part.mkv"


def decode_sound(path, channel=0):
    """The samples of a film's sound, float32 [N] at 16 kHz, as the program ffmpeg decodes them."""
    raw = zoo.ffmpeg("-i", path, "-map", "0:a", "-ac", "2", "-ar", "16000", "-f", "f32le", "-")
    return np.frombuffer(raw, np.float32).reshape(-1, 2)[:, channel]


def two_tracks(folder):
    """An mp4 with two audio tracks, the default one quiet and the other loud."""
    path = folder / "two.mp4"
    tracks = ("-map", "0:v", "-map", "1:a", "-map", "1:a", "-filter:a:0", "volume=0.2", "-c:a", "aac")
    zoo.ffmpeg(*VIDEO, *TONE, *tracks, *H264, path)
    return path


def unknown_codec(path, tracks):
    """Give the first audio tracks of an mp4 an unknown codec."""
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"zzzz", tracks).replace(b"esds", b"zzzz", tracks))
    return path


def test_join_uses_the_default_sound_track(tmp_path, part, capsys):
    join([part], tmp_path / "film.mp4", fps=12, source=two_tracks(tmp_path))
    assert np.abs(decode_sound(tmp_path / "film.mp4")[8000:24000]).max() == pytest.approx(0.2 * LOUD, abs=0.005)
    assert "cannot be decoded" not in capsys.readouterr().err


def test_join_skips_a_sound_track_without_a_decoder(tmp_path, part, capsys):
    source = unknown_codec(two_tracks(tmp_path), 1)
    film = join([part], tmp_path / "film.mp4", fps=12, source=source)
    assert film.has_audio and np.abs(decode_sound(tmp_path / "film.mp4")[8000:24000]).max() == pytest.approx(LOUD, abs=0.01)
    assert f"audio track 0 of {source} cannot be decoded" in capsys.readouterr().err


def test_a_film_is_silent_where_no_sound_track_can_be_decoded(tmp_path, part, capsys):
    source = unknown_codec(two_tracks(tmp_path), 2)
    film = join([part], tmp_path / "film.mp4", fps=12, source=source)
    assert (film.has_audio, film.frames) == (False, 26)
    assert capsys.readouterr().err.count("cannot be decoded") == 2


def test_join_finds_the_sound_of_a_file_after_seeking(tmp_path, part):
    """With B-frames and MP3 in AVI, seeking by time finds no packet of the sound."""
    source = tmp_path / "mp3.avi"
    zoo.ffmpeg(*VIDEO, *TONE, *H264, "-c:a", "libmp3lame", source)
    join([part], tmp_path / "film.mp4", fps=12, source=source)
    sound = decode_sound(tmp_path / "film.mp4")
    assert len(sound) / 16000 == pytest.approx(2, abs=0.1)
    assert np.abs(sound[1600:30000]).reshape(-1, 400).max(axis=1).min() > 0.05  # in every 1/40 s


@pytest.mark.parametrize("channels", [1, 6, 8, 10, 16, 24])
def test_join_takes_sound_of_any_number_of_channels(tmp_path, part, channels):
    """Only the first channel has sound. It is on the left, or in the middle if it is the only channel."""
    tone = "aevalsrc=exprs='" + "|".join(["0.5*sin(2764*t)", *["0"] * (channels - 1)]) + "':duration=2"
    source = tmp_path / "many.mkv"
    zoo.ffmpeg(*VIDEO, "-f", "lavfi", "-i", tone, *H264, "-c:a", "pcm_s16le", source)
    join([part], tmp_path / "film.mp4", fps=12, source=source)
    left, right = (np.abs(decode_sound(tmp_path / "film.mp4", side)[8000:24000]).max() for side in (0, 1))
    assert left > 0.02 and (channels == 1 or right < left / 2)


@pytest.mark.parametrize("layout", ["7.1.4", "5.1.2", "10 channels"])
def test_join_mixes_each_channel_to_its_side(tmp_path, part, layout):
    """Each channel has sound alone for 0.2 s: left channels on the left, right ones on the right, others on both sides."""
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    source = tmp_path / "many.mov"
    length = len(names) // 5 * 16000 + 16000
    with av.open(source, "w") as container:
        video_stream = container.add_stream("mpeg4", rate=12, width=96, height=64, pix_fmt="yuv420p")
        sound = container.add_stream("pcm_s16le", rate=16000, layout=layout)
        for number in range(round(length / 16000 * 12)):
            frame = av.VideoFrame(96, 64, "yuv420p")
            frame.pts = number
            container.mux(video_stream.encode(frame))
        samples = np.zeros((len(names), length), np.int16)
        for number in range(len(names)):
            samples[number, 3200 * number : 3200 * (number + 1)] = 8000 * np.sin(np.arange(3200) / 5)
        frame = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        container.mux([*video_stream.encode(None), *sound.encode(None)])
    join([part], tmp_path / "film.mp4", fps=12, source=source)
    for number, name in enumerate(names):
        mid = slice(3200 * number + 1000, 3200 * number + 2200)
        left, right = (np.abs(decode_sound(tmp_path / "film.mp4", side)[mid]).max() for side in (0, 1))
        side = {"NONE": "LR"[number % 2], "LFE": ""}.get(name, name[-1])
        assert (left > 0.005, right > 0.005) == (side != "R", side != "L"), name


def test_join_takes_sound_whose_channels_and_rate_change(tmp_path, part, capsys):
    """Two broadcasts joined by `cat`."""
    for name, options in (("one", ("-ac", "1", "-ar", "48000")), ("two", ("-ac", "2", "-ar", "44100"))):
        zoo.ffmpeg(*VIDEO, *TONE, *H264, "-c:a", "aac", *options, tmp_path / f"{name}.ts")
    source = tmp_path / "both.ts"
    source.write_bytes((tmp_path / "one.ts").read_bytes() + (tmp_path / "two.ts").read_bytes())
    film = join([part], tmp_path / "film.mp4", fps=12, source=source)
    assert film.has_audio and film.source_frames == 48
    assert "restarts: only the sound of its first part is written" in capsys.readouterr().err
    sound = decode_sound(tmp_path / "film.mp4")
    assert min(np.abs(sound[8000:24000]).max(), np.abs(sound[40000:56000]).max()) > 0.05


def test_join_drops_sound_that_begins_after_the_video_ends(tmp_path, part):
    plain, late = tmp_path / "plain.mp4", tmp_path / "late.mkv"
    zoo.ffmpeg(*VIDEO, *TONE, *H264, plain)
    zoo.ffmpeg("-i", plain, "-itsoffset", "5", "-i", plain, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    film = join([part], tmp_path / "film.mp4", fps=12, source=late)
    assert (film.has_audio, film.source_frames, film.frames) == (False, 24, 26)


@pytest.mark.parametrize("amount", [3, 20])
def test_damaged_sound_does_not_shorten_the_film(tmp_path, part, amount):
    source = tmp_path / "noise.mp4"
    zoo.ffmpeg(*VIDEO, *TONE, *H264, "-c:a", "aac", "-bsf:a", f"noise=amount={amount}", source)
    film = join([part], tmp_path / "film.mp4", fps=12, source=source)
    assert (film.source_frames, film.frames) == (24, 26)


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_sound_with_nan_samples_leaves_the_film_silent(tmp_path, part, number, capsys):
    raw = np.full(32000, 0.1, np.float32)
    raw[8000:8800] = float(number)
    raw.tofile(tmp_path / "raw")
    raw_input = ("-f", "f32le", "-ar", "16000", "-ac", "1", "-i", tmp_path / "raw")
    zoo.ffmpeg(*VIDEO, *raw_input, *H264, "-c:a", "copy", tmp_path / "odd.mkv")
    film = join([part], tmp_path / "film.mp4", fps=12, source=tmp_path / "odd.mkv")
    assert (film.has_audio, film.source_frames) == (False, 24)
    assert "has numbers that are infinite or NaN" in capsys.readouterr().err


def test_join_takes_mono_sound_without_a_layout(tmp_path, part):
    source = tmp_path / "mono.mkv"
    zoo.ffmpeg(*VIDEO, *TONE, *H264, "-c:a", "tta", source)
    assert join([part], tmp_path / "film.mp4", fps=12, source=source).has_audio
    assert np.abs(decode_sound(tmp_path / "film.mp4")[8000:24000]).max() == pytest.approx(LOUD, abs=0.01)


def test_a_late_sound_track_begins_late_in_the_film(tmp_path, part):
    plain, late = tmp_path / "plain.mp4", tmp_path / "late.mkv"
    zoo.ffmpeg(*VIDEO, *TONE, *H264, plain)
    zoo.ffmpeg("-i", plain, "-itsoffset", "0.75", "-i", plain, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    join([part], tmp_path / "film.mp4", fps=12, source=late)
    assert np.flatnonzero(np.abs(decode_sound(tmp_path / "film.mp4")) > 0.05)[0] / 16000 == pytest.approx(0.75, abs=0.05)


def test_concat_refuses_a_film_that_lost_the_sound_of_its_source(tmp_path):
    zoo.ffmpeg(*VIDEO, *TONE, *H264, tmp_path / "source.mp4")
    sound = find_sound(tmp_path / "source.mp4", 0.0, 2.0)
    assert sound == Sound(tmp_path / "source.mp4", 0, 0.0, 2.0, "", sound.levels)
    check_sound(tmp_path / "source.mp4", sound)
    zoo.ffmpeg(*VIDEO, "-f", "lavfi", "-i", "anullsrc=duration=2", *H264, tmp_path / "silent.mp4")
    zoo.ffmpeg("-i", tmp_path / "source.mp4", "-t", 1, "-c", "copy", tmp_path / "short.mp4")
    for name in ("silent", "short"):
        with pytest.raises(ItemError, match=f"{name}.mp4 has .* s of sound .* instead of 2.00 s"):
            check_sound(tmp_path / f"{name}.mp4", sound)


# ------------------------------------------------------------------------------------------------------- varying rates


def make_pausing_video(folder):
    """A video of 12 frames per second whose 12th frame lasts two more seconds. A tone begins with the 13th frame."""
    path = folder / "pausing.mp4"
    tone = "aevalsrc=exprs='if(gte(t,3),0.5*sin(2764*t),0)':duration=4"
    still = "setpts=(N+24*gte(N\\,12))/12/TB"
    encoding = ("-fps_mode", "passthrough", "-video_track_timescale", "12000", "-c:a", "aac")
    zoo.ffmpeg(*VIDEO, "-f", "lavfi", "-i", tone, "-vf", still, *H264, *encoding, path)
    return path


def read_frame_times(path):
    """The presentation time of each frame in seconds, as PyAV reads it."""
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def test_propagate_keeps_the_frame_times_of_a_varying_rate(tmp_path):
    source = make_pausing_video(tmp_path)
    stage("extract_frames", source, "--select", "all", "-o", tmp_path / "frames.json")
    stage("propagate", tmp_path / "frames.json", "--keys", tmp_path / "frames.json", "-o", tmp_path / "new.json")
    stage("concat", tmp_path / "new.json", "--source", source, "-o", tmp_path / "film.mp4")
    expected = [(n + 24 * (n >= 12)) / 12 for n in range(24)]
    assert read_frame_times(tmp_path / "film.mp4") == pytest.approx(expected, abs=1e-3)
    before, after = (np.stack([frame.rgb for frame in frames(path)]).astype(int) for path in (source, tmp_path / "film.mp4"))
    assert [int(np.abs(before - rgb).mean(axis=(1, 2, 3)).argmin()) for rgb in after] == list(range(24))
    sound = decode_sound(tmp_path / "film.mp4")
    assert np.flatnonzero(np.abs(sound) > 0.1)[0] / 16000 == pytest.approx(3, abs=0.03)
    assert len(sound) / 16000 == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("fps", [12, 24, 30000 / 1001])
def test_propagate_keeps_a_constant_rate(tmp_path, fps):
    images = [np.full((64, 96, 3), grey, np.uint8) for grey in range(0, 250, 10)]
    assemble(images, [round(n / fps, 3) for n in range(25)], tmp_path / "film.mp4", size=(96, 64), fps=fps)
    source = probe(tmp_path / "film.mp4")
    assert source.constant_rate and float(source.fps) == pytest.approx(fps)


def test_a_part_of_a_film_starts_with_its_own_sound(tmp_path):
    """In the last twelve frames the tone begins with the first of them."""
    source = make_pausing_video(tmp_path)
    images = [np.full((64, 96, 3), grey, np.uint8) for grey in range(0, 120, 10)]
    times = [3 + n / 12 for n in range(12)]
    assemble(images, times, tmp_path / "film.mp4", size=(96, 64), fps=12, sound_of=probe(source))
    assert np.abs(decode_sound(tmp_path / "film.mp4")[1600:3200]).max() > 0.3


def test_a_video_that_stands_still_for_hours_is_refused_at_once(tmp_path, part):
    source = tmp_path / "hole.mkv"
    zoo.ffmpeg(*VIDEO, "-vf", "setpts=N/12/TB+36000*gte(N\\,6)/TB", "-fps_mode", "passthrough", *H264, source)
    with pytest.raises(ItemError, match=r"hole.mkv shows frame 5 for 10:00:00, from 0.41\d s on: cut that out"):
        join([part], tmp_path / "film.mp4", fps=12, source=source)
    assert not (tmp_path / "film.mp4").exists()
