"""Odd files, as cameras, editors and recorders write them, are read correctly.

Every frame of these videos has its number and four coloured corners, so that frame and orientation can be recognised. The
program ffmpeg is the independent truth.
"""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from stages.media.probe import frame_times, probe
from stages.media.read import Damaged, Truncated, frames, read_image
from stages.media.select import evenly, last, midpoints, sample
from stages.runtime.errors import ItemError
from tests import zoo
from tests.commands import events
from tests.zoo import CORNERS, H264, MPEG2, read_number

HEVC = ["-c:v", "libx265", "-x265-params", "log-level=error:keyint=12", "-pix_fmt", "yuv420p"]
VP9 = ["-c:v", "libvpx-vp9", "-b:v", "800k", "-g", "12", "-pix_fmt", "yuv420p"]
MPEG4 = ["-c:v", "mpeg4", "-bf", "2", "-g", "12", "-q:v", "2"]


def numbers(decoded) -> list[int]:
    return [read_number(frame.rgb) for frame in decoded]


def corners(rgb) -> str:
    """The colours of the corners of an image, row by row."""
    colours = [rgb[y, x].astype(int) for y in (4, -5) for x in (4, -5)]
    return " ".join(min(CORNERS, key=lambda name: np.abs(rgb - CORNERS[name]).sum()) for rgb in colours)


def warnings(capsys) -> list[dict]:
    return [event for event in events(capsys.readouterr().err) if event["event"] == "warning"]


def replace_bytes(path, old: bytes, new: bytes, name=None):
    """A copy of a file in which all occurrences of some bytes are replaced."""
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    changed = path.with_name(name or "changed_" + path.name)
    changed.write_bytes(data.replace(old, new))
    return changed


# orientation


@pytest.mark.parametrize("mirror", [[], ["-display_hflip"], ["-display_vflip"]])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_probe_reads_a_display_matrix_as_turn_and_mirror(tmp_path, degrees, mirror):
    stored, path = zoo.numbered_video(tmp_path, "stored.mp4", frames=3), tmp_path / "turned.mp4"
    zoo.ffmpeg("-display_rotation", degrees, *mirror, "-i", stored, "-c", "copy", path)
    source = probe(path)
    decoded, truth = last(path)[0].rgb, zoo.rgb_by_ffmpeg(path, source.size)[-1]
    assert corners(decoded) == corners(truth)
    assert np.abs(decoded.astype(int) - truth).mean() < 3
    assert source.mirrored == bool(mirror)


UPRIGHT = {  # EXIF orientations: from the stored image to the upright one
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_read_image_applies_all_eight_exif_orientations(tmp_path, ending):
    stored = zoo.numbered_image(5)
    for orientation, turn in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{ending}"
        Image.fromarray(stored).save(path, exif=exif, quality=95)
        decoded, truth = read_image(path), turn(stored)
        assert decoded.shape == truth.shape and corners(decoded) == corners(truth)


# which frames


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "ts"])
@pytest.mark.parametrize(("start", "seconds"), [(2.5, 2.5), (1.3, 1.0)])
def test_a_stream_copied_cut_has_the_frames_that_ffmpeg_shows(tmp_path, ending, start, seconds):
    whole = zoo.numbered_video(tmp_path, "whole.mp4", [*H264, "-g", "250"], frames=96)
    path = tmp_path / f"cut.{ending}"
    zoo.ffmpeg("-ss", start, "-i", whole, "-t", seconds, "-c", "copy", path)
    truth = [read_number(rgb) for rgb in zoo.rgb_by_ffmpeg(path)]
    source = probe(path)
    assert numbers(frames(source)) == truth
    assert numbers(last(path)) == truth[-1:] and numbers(sample(path, 1, True))[-1] == truth[-1]
    assert frame_times(source) == pytest.approx([frame.time for frame in frames(source)], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "encoder", "fps"),
    [
        ("h264.mp4", H264, 12),
        ("h264.mkv", H264, 12),
        ("h264.ts", H264, 12),
        ("h264.avi", H264, 12),
        ("h264.flv", H264, 12),
        ("open_gop.mkv", [*H264, "-x264-params", "open-gop=1"], 12),
        ("intra_refresh.mp4", [*H264, "-x264-params", "intra-refresh=1:keyint=30"], 12),
        ("fragments.mp4", [*H264, "-movflags", "+frag_keyframe+empty_moov"], 12),
        ("hevc.ts", HEVC, 12),
        ("mpeg4.avi", MPEG4, 12),
        ("wmv2.wmv", ["-c:v", "wmv2", "-q:v", "2"], 12),
        ("mpeg1.mpg", ["-c:v", "mpeg1video", "-bf", "2", "-q:v", "2"], 25),
        ("mpeg2.vob", MPEG2, 25),
        ("mpeg2.ts", MPEG2, 25),
        ("vp8.webm", ["-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "10", "-b:v", "800k", "-g", "12"], 12),
        ("vp9.webm", VP9, 12),
        ("mjpeg.avi", ["-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"], 12),
        ("prores.mov", ["-c:v", "prores_ks"], 12),
        ("gif.gif", [], 12),
    ],
)
def test_sampled_frame_numbers_are_those_of_the_frames(tmp_path, name, encoder, fps):
    path = zoo.numbered_video(tmp_path, name, encoder, frames=60, fps=fps)
    sampled = sample(path, 8, include_last=True)
    assert [frame.index for frame in sampled] == numbers(sampled) == [3, 10, 18, 25, 33, 40, 47, 55, 59]
    assert [frame.time for frame in sampled] == pytest.approx([frame.index / fps for frame in sampled], abs=0.01)
    assert numbers(last(path, 2)) == [58, 59]


def test_last_gives_the_last_frame_of_a_long_video_of_each_kind(tmp_path):
    for name, encoder in (("a.mp4", H264), ("a.mkv", H264), ("a.ts", H264), ("a.avi", H264), ("a.mpg", MPEG2)):
        path = zoo.numbered_video(tmp_path, name, encoder, frames=600, fps=25, size=(64, 48))
        (end,) = last(path)
        assert (end.index, read_number(end.rgb)) == (599, 599 % 256)


def test_training_clips_spread_over_the_shown_frames(tmp_path):
    whole = zoo.numbered_video(tmp_path, "whole.mp4", H264, frames=48)
    data = bytearray(whole.read_bytes())
    edit = data.index(b"elst") + 12  # after version, flags and count: the duration of the edit in milliseconds
    assert struct.unpack(">I", data[edit : edit + 4]) == (4000,)
    data[edit : edit + 4] = struct.pack(">I", 2000)
    path = tmp_path / "half.mp4"
    path.write_bytes(data)
    assert numbers(evenly(path, 8)) == [1, 4, 7, 10, 13, 15, 18, 21]
    assert numbers(evenly(path, 24)) == list(range(24))


# rates and times


def test_probe_estimates_a_missing_rate_from_the_frames(tmp_path):
    pause = "setpts=(N+24*gte(N\\,12))/12/TB"
    held = zoo.numbered_video(tmp_path, "held.mkv", [*H264, "-bf", "0", "-vf", pause, "-fps_mode", "passthrough"], frames=24)
    even = zoo.numbered_video(tmp_path, "even.mkv", [*H264, "-bf", "0"], frames=24)
    for path, least in ((held, 23 / (47 / 12)), (even, 12)):
        data = bytearray(path.read_bytes())
        at = data.find(b"\x23\xe3\x83")  # Matroska's default duration, which becomes a void element of the same length
        if at > 0:
            data[at : at + 4] = b"\xec" + bytes([0x80 + data[at + 3] - 0x80 + 2]) + bytes(2)
        path.write_bytes(data)
        source = probe(path)
        # for the video with a pause, the average over all frames or without the pause
        assert least - 0.1 <= source.fps <= 12.2
        assert numbers(last(path)) == [23] and numbers(frames(source)) == list(range(24))


def test_a_video_of_ten_second_slides_is_complete(tmp_path):
    path = zoo.numbered_video(tmp_path, "slides.mkv", frames=5, fps="1/10")
    assert numbers(frames(path)) == [0, 1, 2, 3, 4] and [frame.time for frame in frames(path)] == [0, 10, 20, 30, 40]
    with pytest.raises(Truncated):
        last(zoo.truncate(path, 0.9))


@pytest.mark.parametrize("name", ["late.ts", "late.mkv", "late.mp4"])
def test_frame_times_of_a_clock_that_starts_late(tmp_path, name):
    path = zoo.numbered_video(tmp_path, name, [*H264, "-output_ts_offset", "100"], frames=24)
    source = probe(path)
    assert source.fps == 12 and source.start == pytest.approx(100, abs=2)
    assert [frame.time for frame in frames(source)] == pytest.approx(np.arange(24) / 12, abs=2e-3)
    assert numbers(last(path)) == [23]


@pytest.mark.parametrize(("encoder", "fps"), [(H264, 12), (HEVC, 12), (MPEG2, 25)])
def test_packets_before_the_first_keyframe_give_no_frames(tmp_path, encoder, fps):
    path = zoo.numbered_video(tmp_path, "whole.ts", encoder, fps=fps)
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 3 // 188 * 188 :])
    source = probe(path)
    decoded = list(frames(source))
    assert numbers(decoded) == list(range(48 - len(decoded), 48)) and 0 < len(decoded) < 40
    assert frame_times(source) == pytest.approx(np.arange(len(decoded)) / fps, abs=1e-3)
    assert [frame.index for frame in sample(path, 4, True)] == [frame.index for frame in [*midpoints(path, 4), *last(path)]]


# damage


def damage(path, at=0.5, count=200):
    """A copy in which some bytes are random."""
    data = bytearray(path.read_bytes())
    position = int(len(data) * at)
    data[position : position + count] = np.random.default_rng(0).integers(0, 256, count).astype(np.uint8).tobytes()
    copy = path.with_name("damaged_" + path.name)
    copy.write_bytes(data)
    return copy


def remove_a_packet(path):
    """A copy of a transport stream that lacks one packet of its video."""
    data = path.read_bytes()
    half = len(data) // 2 // 188
    lost = next(n for n in range(half, len(data) // 188) if data[n * 188 + 1] & 0x1F == 1 and data[n * 188 + 2] == 0)
    copy = path.with_name("lost_" + path.name)
    copy.write_bytes(data[: lost * 188] + data[lost * 188 + 188 :])
    return copy


@pytest.mark.parametrize(
    ("name", "encoder", "maker"),
    [
        ("h264.ts", [*H264, "-crf", "12"], remove_a_packet),
        ("hevc.ts", HEVC, remove_a_packet),
        ("h264.ts", [*H264, "-crf", "12"], damage),
        ("h264.mp4", [*H264, "-crf", "12"], damage),
        ("h264.flv", [*H264, "-crf", "12"], damage),
    ],
)
def test_damage_in_the_middle_is_reported_and_the_rest_is_read(tmp_path, capsys, name, encoder, maker):
    path = maker(zoo.numbered_video(tmp_path, name, encoder))
    with pytest.raises(Damaged, match=r"is damaged at \d\.\d s") as caught:
        last(path)
    assert 0.5 < caught.value.at < 3.5
    (end,) = last(path, allow_truncated=True)
    assert (end.index, read_number(end.rgb)) == (47, 47) and end.time == pytest.approx(47 / 12, abs=2e-3)
    assert any("its good frames are used" in line["reason"] for line in warnings(capsys))
    for frame in frames(path, allow_damage=True):
        assert frame.time == pytest.approx(frame.index / 12, abs=2e-3)
    assert len(frame_times(probe(path))) == 48
    assert sample(path, 4, include_last=True)[-1].index == 47


@pytest.mark.parametrize("kept", ["not(between(mod(n\\,9)\\,3\\,4))", "lt(n\\,30)+not(mod(n\\,3))"])
def test_a_transport_stream_of_varying_rate_is_complete(tmp_path, kept):
    """Frames that the encoder leaves out leave no gap in the counters of the packets."""
    zoo.numbered_video(tmp_path, "all.mkv", H264)
    path = tmp_path / "some.ts"
    zoo.ffmpeg("-i", tmp_path / "all.mkv", "-vf", f"select='{kept}'", "-fps_mode", "vfr", *H264, path)
    left = [n for n in range(48) if (n % 9 not in (3, 4) if "between" in kept else n < 30 or n % 3 == 0)]
    decoded = list(frames(path))
    assert numbers(decoded) == left
    assert [frame.time for frame in decoded] == pytest.approx(np.array(left) / 12, abs=2e-3)


@pytest.mark.parametrize("name", ["a.wmv", "a.mkv", "a.mp4", "a.ts", "a.avi", "a.nut", "a.flv"])
@pytest.mark.parametrize("length", [3, 12])
def test_a_video_with_longer_sound_is_complete(tmp_path, name, length):
    zoo.numbered_video(tmp_path, "picture.mkv", H264, frames=length)
    tone = ("-f", "lavfi", "-i", "sine=duration=4")
    video, audio = ("wmv2", "wmav2") if name == "a.wmv" else ("libx264", "libmp3lame")
    zoo.ffmpeg("-i", tmp_path / "picture.mkv", *tone, "-c:v", video, "-qscale:v", 2, "-c:a", audio, tmp_path / name)
    assert numbers(frames(tmp_path / name)) == list(range(length))


@pytest.mark.parametrize("name", ["a.mkv", "a.gif", "f.mp4", "a.wmv"])
def test_frames_after_damage_that_ends_the_reading_are_reported_missing(tmp_path, name):
    fragments = ["-movflags", "+frag_keyframe+empty_moov"]
    encoder = {"a.gif": [], "f.mp4": [*H264, *fragments], "a.wmv": ["-c:v", "wmv2", "-qscale:v", 2]}.get(name, H264)
    path = zoo.numbered_video(tmp_path, name, encoder)
    with pytest.raises(Truncated):
        last(zoo.truncate(path, 0.6))
    if name == "a.mkv":
        with pytest.raises((Truncated, Damaged)):
            last(damage(path, 0.4, 400))


@pytest.mark.parametrize(("name", "encoder", "fps"), [("a.ts", H264, 12), ("m.ts", MPEG2, 25), ("a.vob", MPEG2, 25)])
def test_transport_streams_joined_by_cat_are_complete(tmp_path, name, encoder, fps):
    path = zoo.numbered_video(tmp_path, name, encoder, frames=24, fps=fps)
    path.write_bytes(path.read_bytes() * 2)
    source = probe(path)
    decoded = list(frames(source))
    assert numbers(decoded) == [*range(24), *range(24)]
    assert [frame.time for frame in decoded] == pytest.approx(np.arange(48) / fps, abs=2e-3)
    assert len(frame_times(source)) == 48 and numbers(last(path)) == [23]


def test_mp4_files_joined_by_cat_are_logged_and_the_first_is_read(tmp_path, capsys):
    path = zoo.numbered_video(tmp_path, "a.mp4", frames=24)
    assert numbers(frames(path)) == list(range(24)) and not warnings(capsys)
    path.write_bytes(path.read_bytes() + zoo.numbered_video(tmp_path, "b.mp4", frames=12).read_bytes())
    assert numbers(frames(path)) == list(range(24))
    assert ["appended" in line["reason"] for line in warnings(capsys)] == [True]


def set_edits(path, edits):
    """A copy of an mp4 whose first edit list has the given entries: (duration, start in the media), in seconds."""
    data = path.read_bytes()
    position = data.index(b"elst") - 4
    scales = [struct.unpack(">I", data[data.index(box) + 16 :][:4])[0] for box in (b"mvhd", b"mdhd")]
    rows = b"".join(struct.pack(">IiHH", round(s * scales[0]), round(at * scales[1]), 1, 0) for s, at in edits)
    old = struct.unpack(">I", data[position : position + 4])[0]
    box = struct.pack(">I4sII", 16 + len(rows), b"elst", 0, len(edits)) + rows
    more = len(box) - old
    out = bytearray(data[:position] + box + data[position + old :])
    for name in (b"moov", b"trak", b"edts"):  # the first of each holds the edit list
        start = out.index(name) - 4
        out[start : start + 4] = struct.pack(">I", struct.unpack(">I", out[start : start + 4])[0] + more)
    copy = path.with_name("edited_" + path.name)
    copy.write_bytes(out)
    return copy


def test_an_edit_list_of_several_cuts_keeps_the_frame_times(tmp_path):
    path = set_edits(zoo.numbered_video(tmp_path, "a.mp4", [*H264, "-bf", "2"]), [(1, 0.25), (1, 2.25), (0.5, 0.5)])
    decoded = list(frames(path))
    truth = zoo.rgb_by_ffmpeg(path)
    assert len(decoded) == len(truth) == 30
    assert [frame.time for frame in decoded] == pytest.approx(np.arange(30) / 12, abs=0.1)  # cuts lie between frames
    assert numbers(decoded) == [read_number(rgb) for rgb in truth]


def test_an_unapplied_clean_aperture_is_reported(tmp_path, capsys):
    path = zoo.numbered_video(tmp_path, "a.mov", H264)
    data = bytearray(path.read_bytes())
    box = struct.pack(">I4s8I", 40, b"clap", 64, 1, 48, 1, 0, 1, 0, 1)
    entry = data.index(b"avc1") - 4
    end = entry + struct.unpack(">I", data[entry : entry + 4])[0]
    data[end:end] = box
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        start = data.index(name) - 4
        data[start : start + 4] = struct.pack(">I", struct.unpack(">I", data[start : start + 4])[0] + len(box))
    path.write_bytes(data)
    assert probe(path).size == (128, 96)
    assert any("clean aperture of 64x48 is not applied" in line["reason"] for line in warnings(capsys))


def test_a_video_with_exif_is_read(tmp_path):
    zoo.ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=12,trim=end_frame=3", "-c:v", "tiff", tmp_path / "t.mov")
    assert len(list(frames(tmp_path / "t.mov"))) == 3


def test_a_matrix_and_range_that_change_within_a_video(tmp_path):
    red = "color=c=0xDC3C3C:size=64x48:rate=12,trim=end_frame=12"
    path, parts = tmp_path / "all.ts", []
    for matrix, full in (("bt709", "tv"), ("bt709", "pc"), ("smpte170m", "tv")):
        part = tmp_path / f"{matrix}{full}.ts"
        colours = f"scale=out_color_matrix={matrix}:out_range={full},format=yuv420p"
        tags = f"setparams=colorspace={matrix}:range={full}"
        zoo.ffmpeg("-f", "lavfi", "-i", red, "-vf", f"{colours},{tags}", *H264, "-crf", "2", part)
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    decoded = [frame.rgb[24, 32].astype(int) for frame in frames(path)]
    assert len(decoded) == 36
    assert max(np.abs(rgb - (220, 60, 60)).max() for rgb in decoded) <= 4


def test_frames_of_a_changed_size_are_scaled_to_the_first_size(tmp_path):
    path, other = (
        zoo.numbered_video(tmp_path, "a.ts", frames=12),
        zoo.numbered_video(tmp_path, "b.ts", frames=12, size=(64, 48)),
    )
    path.write_bytes(path.read_bytes() + other.read_bytes())
    assert numbers(frames(path)) == [*range(12), *range(12)]
    assert {frame.rgb.shape for frame in frames(path)} == {(zoo.HEIGHT, zoo.WIDTH, 3)}


# colours


def write_in_colours(folder, transfer, primaries, matrix):
    """A numbered image of BT.709 with its white at 100 cd/m2, written as a video in other colours."""
    colours = f"zscale=tin=bt709:pin=bt709:rin=pc:t={transfer}:p={primaries}:m={matrix}:r=tv:npl=100,format=yuv420p10le"
    encoder = ["-vf", colours, "-c:v", "libx265", "-x265-params", "log-level=error", "-crf", "4"]
    return zoo.encode_images(folder, f"{transfer}.mp4", [zoo.numbered_image(5)] * 3, encoder)


@pytest.mark.parametrize(
    ("transfer", "primaries", "matrix", "difference"),
    [
        ("arib-std-b67", "2020", "2020_ncl", 30),  # tone mapped: the brightest values become darker
        ("smpte2084", "2020", "2020_ncl", 30),
        ("2020_10", "2020", "2020_ncl", 12),
        ("bt709", "smpte432", "709", 6),
    ],
)
def test_videos_in_other_colours_are_converted_to_bt709(tmp_path, transfer, primaries, matrix, difference):
    decoded, truth = last(write_in_colours(tmp_path, transfer, primaries, matrix))[0].rgb, zoo.numbered_image(5)
    for y, x in ((4, 4), (4, -5), (-5, 4), (-5, -5), (4, 60), (48, 4)):
        assert np.abs(decoded[y, x].astype(int) - truth[y, x]).max() <= difference


@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084"])
def test_hdr_is_tone_mapped_like_the_filters_of_ffmpeg(tmp_path, transfer):
    path = write_in_colours(tmp_path, transfer, "2020", "2020_ncl")
    mapped = "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=mobius:desat=0:peak=10"
    truth = zoo.rgb_by_ffmpeg(path, filters=f"{mapped},zscale=t=bt709:m=bt709:r=pc,format=gbrp")[-1]
    decoded = last(path)[0].rgb
    inner = np.abs(decoded.astype(int) - truth)[::12, 4::16]  # away from the edges, where chroma is interpolated differently
    assert np.median(inner) <= 2 and inner.mean() < 5


@pytest.mark.parametrize("name", ["p.png", "p.avif"])
def test_hdr_images_look_like_hdr_videos(tmp_path, name):
    video = write_in_colours(tmp_path, "smpte2084", "2020", "2020_ncl")
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084"
    encoder = ["-c:v", "libaom-av1", "-still-picture", "1", "-crf", "4"] if name == "p.avif" else ["-pix_fmt", "rgb48be"]
    zoo.ffmpeg("-i", video, "-frames:v", "1", "-vf", tags, *encoder, tmp_path / name)
    decoded, truth = read_image(tmp_path / name), last(video)[0].rgb
    difference = np.abs(decoded.astype(int) - truth)[::12, 4::16]
    assert np.median(difference) <= 2 and difference.mean() < 5


def test_packed_transparency_is_composed_on_white(tmp_path):
    half = np.zeros((64, 96, 4), np.uint8)
    half[:, 48:] = (200, 0, 0, 255)
    raw = tmp_path / "half.rgba"
    raw.write_bytes(half.tobytes() * 2)
    raw_input = ("-f", "rawvideo", "-pix_fmt", "rgba", "-s", "96x64", "-r", "12", "-i", raw)
    zoo.ffmpeg(*raw_input, "-c:v", "rawvideo", "-pix_fmt", "ayuv", tmp_path / "packed.nut")
    decoded = last(tmp_path / "packed.nut")[0].rgb
    assert decoded[:, :40].min() >= 250 and decoded[:, 56:, 1:].max() < 12 and abs(int(decoded[30, 70, 0]) - 200) < 12


def test_unsupported_colours_are_named(tmp_path, capsys):
    path = zoo.numbered_video(tmp_path, "log.mkv", [*H264, "-x264-params", "transfer=log100"], frames=2)
    last(path)
    (line,) = warnings(capsys)
    assert "log 100:1" in line["reason"] and line["file"] == str(path)


def profile(space: bytes, gamma: float, columns=()) -> bytes:
    """An ICC profile of version 2 with a matrix and a curve (ICC.1:2001-04)."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    text = b"text\0\0\0\0none\0\0\0\0"
    named = b"desc\0\0\0\0" + struct.pack(">I", 6) + b"a set\0" + bytes(78)
    tags = {b"desc": named + bytes(-len(named) % 4), b"cprt": text, b"wtpt": xyz((0.9642, 1, 0.8249))}
    if columns:
        tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns)}
        tags |= {name: curve for name in (b"rTRC", b"gTRC", b"bTRC")}
    else:
        tags[b"kTRC"] = curve
    position, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", position + len(body), len(data))
        body += data
    head = (
        struct.pack(">I4sI4s4s4s", position + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    )
    head += bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


P3 = profile(b"RGB ", 2.2, ((0.5151, 0.2412, -0.0011), (0.292, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)))


def test_read_image_applies_icc_profiles(tmp_path):
    Image.new("RGB", (8, 8), (234, 51, 35)).save(tmp_path / "p3.png", icc_profile=P3)
    assert np.abs(read_image(tmp_path / "p3.png").astype(int) - (255, 0, 0)).max() <= 8
    Image.new("L", (8, 8), 128).save(tmp_path / "grey.png", icc_profile=profile(b"GRAY", 1.0))
    assert np.abs(read_image(tmp_path / "grey.png").astype(int) - 188).max() <= 1  # half the light
    clear = Image.new("RGBA", (8, 8), (234, 51, 35, 0))
    clear.save(tmp_path / "clear.png", icc_profile=P3)
    assert (read_image(tmp_path / "clear.png") == 255).all()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(
        tmp_path / "srgb.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    assert (read_image(tmp_path / "srgb.png") == (9, 99, 199)).all()


def test_a_damaged_icc_profile_is_ignored_and_reported(tmp_path, capsys):
    for name, broken in (("cut.png", P3[:200]), ("wrong.png", profile(b"CMYK", 2.2))):
        Image.new("RGB", (8, 8), (9, 99, 199)).save(tmp_path / name, icc_profile=broken)
        assert (read_image(tmp_path / name) == (9, 99, 199)).all()
        (line,) = warnings(capsys)
        assert "colour profile" in line["reason"] and name in line["file"]


def test_read_image_clips_floats_above_white(tmp_path):
    greys = np.full((8, 8), 0.5, np.float32)
    greys[0, 0] = 1.5
    Image.fromarray(greys).save(tmp_path / "over.tif")
    decoded = read_image(tmp_path / "over.tif")
    assert decoded[0, 0].tolist() == [255] * 3 and decoded[4, 4].tolist() == [128] * 3
    Image.fromarray(greys * 6).save(tmp_path / "unknown.tif")
    with pytest.raises(ItemError, match="whose white is unknown"):
        read_image(tmp_path / "unknown.tif")


def test_read_image_takes_16_bit_greys_whose_white_is_zero(tmp_path):
    greys = Image.fromarray(np.full((8, 8), 6000, np.uint16))
    greys.save(tmp_path / "grey.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "grey.tif") as image:
        assert image.tag_v2[262] == 0
    assert read_image(tmp_path / "grey.tif")[0, 0].tolist() == [round(255 * (1 - 6000 / 65535))] * 3


def test_an_icc_profile_counts_by_its_curve_and_not_its_name(tmp_path):
    linear = profile(b"RGB ", 1.0, ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)))
    named = linear.replace(b"a set\0", b"sRGB \0")
    Image.new("RGB", (8, 8), (55, 55, 55)).save(tmp_path / "linear.png", icc_profile=named)
    assert abs(int(read_image(tmp_path / "linear.png")[0, 0, 0]) - 128) <= 2


@pytest.mark.parametrize("position", ["far behind", "inside a text"])
def test_read_image_uses_the_cicp_chunk_of_a_png(tmp_path, position):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    Image.new("RGB", (8, 8), (150, 60, 60)).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    pq = chunk(b"cICP", bytes([9, 16, 0, 1]))
    more = chunk(b"tEXt", b"a\0" + b"x" * 70_000) + pq if position == "far behind" else chunk(b"tEXt", b"a\0" + pq)
    (tmp_path / "p.png").write_bytes(data[:33] + more + data[33:])
    assert (read_image(tmp_path / "p.png")[0, 0].tolist() == [150, 60, 60]) == (position == "inside a text")


def test_read_image_takes_32_bit_greys(tmp_path):
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    eight = np.round(ramp * 255).astype(int)
    for name, greys in {
        "unit": ramp.astype(np.float32),
        "byte": (ramp * 255).astype(np.float32),
        "int": np.round(ramp * 65535).astype(np.int32),
    }.items():
        Image.fromarray(greys).save(tmp_path / f"{name}.tif")
        assert np.abs(read_image(tmp_path / f"{name}.tif")[..., 0] - eight).max() <= 1
    for name, greys in {"below": ramp.astype(np.float32) - 0.5, "nan": np.full((4, 4), np.nan, np.float32)}.items():
        Image.fromarray(greys).save(tmp_path / f"{name}.tif")
        with pytest.raises(ItemError, match="whose white is unknown"):
            read_image(tmp_path / f"{name}.tif")


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("vp9.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-b:v", "1M"]),
        ("vp8.webm", ["-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0", "-b:v", "1M"]),
        ("prores.mov", ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le", "-profile:v", "4444"]),
        ("qtrle.mov", ["-c:v", "qtrle", "-pix_fmt", "argb"]),
        ("png.mov", ["-c:v", "png", "-pix_fmt", "rgba"]),
        ("ffv1.mkv", ["-c:v", "ffv1", "-pix_fmt", "bgra"]),
    ],
)
def test_transparent_video_is_composed_on_white(tmp_path, name, encoder):
    image = np.zeros((96, 128, 4), np.uint8)
    image[:, :64], image[:48, 64:], image[48:, 64:] = (0, 0, 255, 0), (255, 0, 0, 255), (255, 0, 0, 128)
    path = zoo.encode_images(tmp_path, name, [image] * 4, encoder)
    for rgb in (last(path)[0].rgb, sample(path, 1)[0].rgb):
        for (y, x), colour in {(20, 20): (255, 255, 255), (20, 100): (255, 0, 0), (80, 100): (255, 127, 127)}.items():
            assert np.abs(rgb[y, x].astype(int) - colour).max() <= 3


@pytest.mark.parametrize("name", ["i.mp4", "i.ts"])
def test_interlaced_video_is_deinterlaced_frame_for_frame(tmp_path, name):
    path, coding = tmp_path / name, ["-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p", "-flags", "+ilme+ildct"]
    fields = "testsrc2=size=320x240:rate=24:duration=1,tinterlace=interleave_top,setfield=tff"
    zoo.ffmpeg("-f", "lavfi", "-i", fields, *coding, "-x264-params", "tff=1", path)
    assert probe(path).interlaced
    size = (320, 240)
    truth = zoo.rgb_by_ffmpeg(path, size, "bwdif=mode=send_frame:deint=interlaced")
    combed = zoo.rgb_by_ffmpeg(path, size)
    decoded = list(frames(path))
    assert [frame.index for frame in decoded] == list(range(len(combed)))
    assert [frame.time for frame in decoded] == pytest.approx(np.arange(12) / 12, abs=1e-3)
    for frame, expected, other_field in zip(decoded, truth, combed, strict=True):
        grey, expected, other_field = (
            cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(int) for rgb in (frame.rgb, expected, other_field)
        )
        assert np.abs(grey - expected).mean() < 2 < np.abs(grey - other_field).mean()


# streams and tags


def test_the_best_of_several_video_streams_is_read_and_logged(tmp_path, capsys):
    small, large = zoo.numbered_video(tmp_path, "small.mp4", size=(64, 48)), zoo.numbered_video(tmp_path, "large.mp4")
    both = ["-i", small, "-i", large, "-map", "0", "-map", "1", "-c", "copy"]
    zoo.ffmpeg(*both, tmp_path / "both.mp4")
    assert (probe(tmp_path / "both.mp4").size, probe(tmp_path / "both.mp4").stream) == ((128, 96), 1)
    log = events(capsys.readouterr().err)
    assert log[0]["event"] == "video_stream" and (log[0]["stream"], log[0]["of"]) == (1, 2)
    zoo.ffmpeg(*both, "-disposition:v:0", "default", "-disposition:v:1", "0", tmp_path / "preferred.mkv")
    assert probe(tmp_path / "preferred.mkv").size == (64, 48)
    unknown = bytearray((tmp_path / "both.mp4").read_bytes())
    position = unknown.rindex(b"avc1")
    unknown[position : position + 4] = b"zzzz"
    (tmp_path / "unknown.mp4").write_bytes(unknown)
    assert probe(tmp_path / "unknown.mp4").size == (64, 48)
    with pytest.raises(ItemError, match="has a codec without a decoder"):
        probe(replace_bytes(small, b"avc1", b"zzzz"))


def test_a_cover_image_is_no_video_stream(tmp_path):
    Image.new("RGB", (500, 500)).save(tmp_path / "cover.png")
    video, path = zoo.numbered_video(tmp_path, "video.mp4", frames=3), tmp_path / "covered.mp4"
    zoo.ffmpeg("-i", tmp_path / "cover.png", "-i", video, "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0",
               "attached_pic", path)  # fmt: skip
    assert numbers(frames(path)) == [0, 1, 2]


@pytest.mark.parametrize("name", ["latin.avi", "latin.mp4", "latin.mkv"])
def test_tags_in_another_encoding_are_ignored(tmp_path, name):
    path = zoo.numbered_video(tmp_path, name, [*H264, "-metadata", "title=A title of note"], frames=3)
    assert numbers(frames(replace_bytes(path, b"A title of note", "Ein früher Tag.".encode("latin-1")))) == [0, 1, 2]


# files that reproduce public bug reports


def odd(name):
    path = zoo.MEDIA / "odd" / name
    if not path.exists():
        pytest.skip(f"no odd media at {path} (set KINEMAKE_MEDIA)")
    return path


@pytest.mark.parametrize(
    ("name", "count", "first_number", "last_index"),
    [
        ("plain.mp4", 24, 0, 23),
        ("trim.mp4", 30, 66, 29),
        ("L.avi", 250, 0, 249),
        ("H264b.avi", 250, 0, 249),
        ("vob.vob", 48, 0, 47),
        ("lost.ts", 47, 0, 47),
        ("vfr_pause_nodd.mkv", 24, 0, 23),
        ("slides.mkv", 5, 0, 4),
    ],
)
def test_odd_files_have_the_frames_that_their_readme_states(name, count, first_number, last_index):
    path = odd(name)
    if name == "lost.ts":
        with pytest.raises(Damaged, match="damaged at 1.8 s"):
            last(path)
    decoded = list(frames(path, allow_damage=True))
    assert len(decoded) == count and [frame.index + first_number for frame in decoded] == numbers(decoded)
    assert last(path, allow_truncated=True)[0].index == last_index
    sampled = sample(path, 4, include_last=True)
    assert [frame.index + first_number for frame in sampled] == numbers(sampled)
    if name in ("L.avi", "H264b.avi"):
        assert [frame.index for frame in sampled] == [31, 93, 155, 218, 249]
    if name == "vob.vob":
        assert [frame.index for frame in sampled] == [5, 17, 29, 40, 47]


def test_odd_files_have_the_colours_that_their_readme_states():
    assert corners(last(odd("hflip.mp4"))[0].rgb) == "green red yellow blue"
    assert np.abs(last(odd("hlg.mp4"))[0].rgb[4, 4].astype(int) - (220, 30, 30)).max() <= 30
    assert (read_image(odd("p3.png")) == (255, 0, 0)).all()
    greys = read_image(odd("f32.tif"))
    assert (greys.min(), greys.max()) == (20, 235)
    assert [frame.index for frame in evenly(odd("br_end.mp4"), 12)] == list(range(12))
