"""What a video file is: opened safely, described before any frame of it is used."""

import os
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import atan2, pi
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from stages.media.decoding import (
    GUESSING,
    RATE_PACKETS,
    Decoded,
    Decoder,
    Packets,
    decoding_threads,
    has_hidden_alpha,
    stores_times,
    tick_of,
)
from stages.media.filters import entrance, linked
from stages.runtime.errors import ItemError
from stages.runtime.log import log

# Only containers that hold their own data: a playlist or a concat script could name other files or URLs.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,yuv4mpegpipe,nut,mxf,mp3,wav,flac,aac"
)
# Options of libavformat, for PyAV and for the ffmpeg program alike.
SAFE_INPUT = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}

MAX_PIXELS = 1 << 26  # 8192 x 8192: 200 MB for one RGB frame; more is a broken header or a decompression bomb

MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
TRANSFERS = {1: "bt709", 6: "bt601", 8: "linear", 13: "srgb", 14: "bt2020", 15: "bt2020", 16: "pq", 18: "hlg"}
PRIMARIES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 11: "p3", 12: "p3"}
# Colours that are not converted, by their numbers in ITU-T H.273
UNKNOWN_MATRICES = {8: "YCgCo", 11: "SMPTE 2085", 12: "chroma-derived", 13: "chroma-derived", 14: "ICtCp"}
UNKNOWN_TRANSFERS = {9: "log 100:1", 10: "log 316:1", 17: "SMPTE 428"}
UNKNOWN_PRIMARIES = {8: "film", 10: "SMPTE 428 (XYZ)"}
RANGES = {1: "limited", 2: "full"}
NOT_CONVERTED = ("dvh1", "dvhe", "dav1", "dvav", "dva1")  # codec tags: colours that only Dolby Vision's own formulas give

# Containers that have no durations of streams: what libavformat says of these is the container's.
ONE_DURATION = ("asf", "flv", "matroska,webm", "nut")
CLEAN_APERTURE = b"\0\0\0\x28clap"  # size and name of the box
LONGEST_HEADER = 1 << 26  # bytes
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

NOT_VIDEO = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails

# What the libraries raise for files that are not what they say. UnicodeDecodeError is a ValueError.
READER_ERRORS = (av.FFmpegError, ValueError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Source:
    """A video file as its header and its first frames describe it.

    `width`, `height` are pixels as displayed: upright, with square pixels. `fps` is the average rate, by the frames' own
    times where the file states none; `constant_rate`: they come evenly; `on_grid`: they would if some were not left out.
    `duration` is the seconds that the file declares for its picture (0.0: it does not), `start` the seconds of its first
    frame on the file's own clock. `declared_frames` is the container's own count (None: it has none) and may be wrong. For
    display, the stored picture is mirrored, left to right, where `mirrored` says so, and then turned clockwise by `rotation`
    degrees. `color_space`, `color_range`, `color_trc` and `color_primaries` are the stored tags in words, "" where the file
    has none. `stream` is the index of the stream that is read, `container` libavformat's name of the file's format.
    """

    path: Path
    width: int
    height: int
    fps: Fraction
    duration: float
    start: float
    declared_frames: int | None
    codec: str
    pix_fmt: str
    bit_depth: int
    rotation: int
    mirrored: bool
    sample_aspect: Fraction
    constant_rate: bool
    on_grid: bool
    interlaced: bool
    color_space: str
    color_range: str
    color_trc: str
    color_primaries: str
    has_audio: bool
    stream: int
    container: str

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        return self.width, self.height

    @property
    def interval(self) -> Fraction | None:
        """Seconds between frames that lie on a grid, by which lost ones are counted; None where they cannot be so.

        As in mp4, which lists them all, and where the times are guesses.
        """
        counted = self.on_grid and self.container not in GUESSING and not self.container.startswith("mov")
        return 1 / self.fps if counted else None

    @property
    def stores_times(self) -> bool:
        """Whether the file says when each frame is shown; AVI only says in which order they are decoded."""
        return stores_times(self.container)


def local_url(path) -> str:
    """A name that libavformat takes for a local file, whatever characters are in it."""
    return "file:" + os.path.abspath(path)


@contextmanager
def open_video(path):
    """Open a local video for reading: yields (container, its picture stream).

    Raises ItemError, also for what the libraries raise inside the block.
    """
    path = Path(path)
    if not path.is_file():
        raise ItemError(f"no video file at {path}", "check the path")
    if path.stat().st_size == 0:
        raise ItemError(f"{path} is empty", "copy or download it again")
    try:
        # Tags may be in any encoding, and none of them is needed.
        container = av.open(local_url(path), container_options=SAFE_INPUT, metadata_errors="replace")
    except READER_ERRORS as error:
        raise ItemError(
            f"{path} is not a readable video ({said(error)})",
            "give a whole mp4, mov, mkv, webm or avi; an mp4 cut off before its index (moov) cannot be read at all",
        ) from error
    with container, faults_of(path):
        yield container, picture_stream(path, container)


@contextmanager
def faults_of(path):
    """Whatever the libraries raise inside the block for what a video holds becomes an ItemError that names the video."""
    try:
        yield
    except READER_ERRORS as error:
        raise ItemError(f"{path} cannot be read ({said(error)})", "check the file, or encode it again") from error


def said(error: Exception) -> str:
    """What a library's error says, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def picture_streams(container) -> list:
    """The streams of a container that are videos, no cover art; the one to be shown comes first.

    That is one which can be decoded, which the file itself prefers (its disposition is "default"), and the largest of those.
    """
    streams = [s for s in container.streams.video if not s.disposition & NOT_VIDEO]

    def rank(stream) -> tuple:
        codec = stream.codec_context
        default = bool(stream.disposition & av.stream.Disposition.default)
        return codec is None, not default, -(codec.width * codec.height if codec else 0)

    return sorted(streams, key=rank)


def picture_stream(path, container):
    """The stream that is shown of a container. Raises ItemError where there is none, or none that can be decoded."""
    streams = picture_streams(container)
    if not streams:
        raise ItemError(f"{path} has no picture" + " (sound only)" * bool(container.streams.audio), "give a video")
    codec = streams[0].codec_context
    if codec is None:
        raise ItemError(f"{path} is in a codec that no decoder here knows", "encode it again, as H.264 for example")
    _check_size(path, codec.width, codec.height)
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    return streams[0]


def probe(path) -> Source:
    """Describe the video at `path`.

    Raises ItemError: no such file, not a video, sound only, no frame that can be decoded, an absurd size.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        if (count := len(picture_streams(container))) > 1:
            log("video_stream", path=str(path), stream=stream.index, of=count, size=f"{stream.width}x{stream.height}")
        decoder = Decoder(container, stream, threads=1)
        first = next(iter(decoder), None)
        if first is None and decoder.packets.ticks:
            reason = f" ({decoder.error})" if decoder.error else ""
            raise ItemError(f"{path} has no frame that can be decoded{reason}", "check the file, or encode it again")
        if first is None:
            raise ItemError(f"{path} has no frames", "give a video with at least one frame")
        read_all = not any(len(decoder.packets.ticks) == RATE_PACKETS for _ in decoder.stored)
        read_all &= not decoder.packets.damaged
        has_times = stores_times(container.format.name)
        ticks = np.sort([tick for tick in decoder.packets.ticks if tick >= first.tick or not has_times])
        fps, constant_rate, on_grid = rate(ticks, read_all, stream)
        frame = first.frame
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        width, height = max(1, round(frame.width * aspect)), frame.height
        _check_size(path, width, height)
        _warn_of_colours(path, stream, frame)
        if container.format.name.startswith("mov"):
            _warn_of_boxes(path, frame)
        rotation, mirrored = orientation(path, frame)
        if rotation % 180 == 90:
            width, height = height, width
        start = float(first.tick * stream.time_base) if has_times else 0.0
        return Source(
            path=path,
            width=width,
            height=height,
            fps=fps,
            duration=_declared_duration(container, stream, start),
            start=start,
            declared_frames=stream.frames or None,
            codec=stream.codec_context.name,
            pix_fmt=frame.format.name,
            bit_depth=frame.format.components[0].bits,
            rotation=rotation,
            mirrored=mirrored,
            sample_aspect=aspect,
            constant_rate=constant_rate,
            on_grid=on_grid,
            interlaced=frame.interlaced_frame or stream.codec_context.field_order > 1,
            color_space=MATRICES.get(frame.colorspace, ""),
            color_range=RANGES.get(frame.color_range, ""),
            color_trc=TRANSFERS.get(frame.color_trc, ""),
            color_primaries=PRIMARIES.get(frame.color_primaries, ""),
            has_audio=bool(container.streams.audio),
            stream=stream.index,
            container=container.format.name,
        )


def _warn_of_colours(path, stream, frame) -> None:
    names = (
        "Dolby Vision without another base" if stream.codec_context.codec_tag in NOT_CONVERTED else "",
        UNKNOWN_MATRICES.get(frame.colorspace),
        UNKNOWN_TRANSFERS.get(frame.color_trc),
        UNKNOWN_PRIMARIES.get(frame.color_primaries),
    )
    if any(names):
        said = ", ".join(name for name in names if name)
        log("warning", file=str(path), reason=f"its colours ({said}) cannot be converted, and are taken for BT.709's")


def side_data(frame: av.VideoFrame):
    """A frame's side data. PyAV raises an error if one kind of it is unknown to PyAV: such kinds are removed first."""
    while True:
        try:
            return frame.side_data
        except ValueError as error:
            unknown = re.match(r"(\d+) is not a valid", str(error))
            if not unknown:
                raise
            graph = Graph()
            linked(graph, entrance(graph, frame), graph.add("sidedata", f"mode=delete:type={unknown[1]}"))
            graph.push(frame)
            frame = graph.pull()


def orientation(path, frame) -> tuple[int, bool]:
    """How a frame is turned for display, clockwise in degrees, and whether it is mirrored left to right before that.

    By its display matrix, of which ISO/IEC 14496-12 says how it maps stored places to displayed ones: (x, y) to
    (a x + c y, b x + d y), y downwards. Angles are taken to the nearest quarter, of which the log tells.
    """
    data = side_data(frame).get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32, 9).tolist()
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    quarters = atan2(b, a) / (pi / 2)
    if abs(quarters - round(quarters)) > 0.05:
        log("warning", file=str(path), reason=f"it is turned by {quarters * 90:.0f} degrees, of which whole quarters count")
    return round(quarters) % 4 * 90, mirrored


def rate(ticks: np.ndarray, read_all: bool, stream) -> tuple[Fraction, bool, bool]:
    """Frames per second, whether they come evenly, and whether they do where none is left out.

    Of a stream whose first frames (or all) are shown at `ticks`, sorted.

    The stream's average rate is used unless the frames' times contradict it: for containers that state no rate, libavformat
    returns the rate of their clock.
    """
    stated = Fraction(stream.average_rate or stream.guessed_rate or 0)
    late = stream.codec_context.reorder_depth + 2  # frames that are stored after others shown later
    shown = ticks if read_all else ticks[:-late]
    if len(shown) < 3 or shown[-1] == shown[0] or stated and stream.container.format.name in GUESSING:
        return stated or Fraction(25), True, True
    clock, steps = 1 / stream.time_base, len(shown) - 1
    span = int(shown[-1] - shown[0])
    even = bool(np.abs(shown - (shown[0] + span / steps * np.arange(len(shown)))).max() <= 1)
    own = steps * clock / span
    usual = clock / max(Fraction(1, 1000), Fraction(float(np.median(np.diff(shown)))))
    if stated and (abs(stated / own - 1) < 0.005 or not even and stated < 1.5 * max(own, usual)):
        return stated, even and abs(stated / own - 1) < 0.005, _on_grid(shown, clock / stated)
    if even:
        common = (Fraction(round(own)), Fraction(round(own * 1001 / 1000) * 1000, 1001))
        own = next((fps for fps in common if fps and abs(steps * clock / fps - span) <= 1), own)
    own = own.limit_denominator(1001) or own
    return own, even and read_all, _on_grid(shown, clock / own)


def _on_grid(ticks: np.ndarray, interval: Fraction) -> bool:
    """Whether frames lie on a grid, in which some are left out."""
    steps = np.diff(ticks) / float(interval)
    return bool((np.abs(steps - steps.round()) < 0.05 + 1 / float(interval)).all() and (steps.round() == 1).mean() > 0.5)


def frame_times(source: Source) -> np.ndarray:
    """Seconds at which each frame is shown, from the first frame's start on, float64 [N].

    Without decoding where packets are known to be frames; else by decoding all. Frames that damage took have their place.
    """
    timeline = packet_timeline(source)
    return decoded_times(source) if timeline is None else timeline.times


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each frame is shown: `times`, seconds from the first frame on, float64 [N]; `ticks` of the stream, int64 [N].

    Decoding can begin with the frame at each of the ticks `keys`, int64 [K], for which `entries`, int64 [K], are sought;
    where there are none, at the beginning only. `places`, int64 [M, 3], has the tick of each packet, ascending, where in
    the file it lies, and its size.
    """

    times: np.ndarray
    ticks: np.ndarray
    keys: np.ndarray
    entries: np.ndarray
    places: np.ndarray

    def has(self, packet) -> bool:
        """Whether a packet is the one that was met at its tick before."""
        tick = tick_of(packet)
        row = self.places[min(np.searchsorted(self.places[:, 0], tick), len(self.places) - 1)]
        return row.tolist() == [tick, -1 if packet.pos is None else packet.pos, packet.size]


def packet_timeline(source: Source) -> Timeline | None:
    """The timeline as the packets have it; None where they may not be what is decoded."""
    if source.container in GUESSING:
        return None
    may_be_fields = source.interlaced and source.container in ("mpegts", "matroska,webm")
    if may_be_fields or source.codec == "vp8":  # which has packets that are not shown
        return None
    by_order = source.container == "mpegts"  # sought in by when packets are decoded, not shown
    ticks, keys, places = array("q"), {}, array("q")
    with open_video(source.path) as (container, stream):
        packets, clock, hidden_alpha = Packets(container, stream), float(stream.time_base), has_hidden_alpha(stream)
        for packet, damaged in packets:
            if damaged or not (keys or packet.is_keyframe):
                return None
            if source.codec == "mpeg4" and packet.size < 10:  # "not coded": the frame before it is shown again
                return None
            if packet.is_keyframe:
                keys[tick_of(packet)] = packet.dts if by_order and packet.dts is not None else tick_of(packet)
            if not packet.is_discard:
                ticks.append(tick_of(packet))
            places.extend((tick_of(packet), -1 if packet.pos is None else packet.pos, packet.size))
    if packets.ends_early or packets.restarts or not ticks:
        return None
    ticks = np.sort(np.array(ticks))
    times = ticks * clock
    if not np.diff(ticks).all() or source.stores_times and abs(times[0] - source.start) > clock / 2:
        return None
    if source.stores_times and source.interval and np.diff(times).max(initial=0.0) > 1.5 * float(source.interval):
        return None  # some may have been lost
    can_seek = source.stores_times and not source.interlaced and not hidden_alpha
    keys = np.array(sorted(keys.items()) if can_seek else [], np.int64).reshape(-1, 2)
    places = np.array(places).reshape(-1, 3)
    return Timeline(times - times[0], ticks, *keys.T, places[places[:, 0].argsort()])


def decoded(source: Source, *, threads: int, stop_at_damage: bool = False) -> Iterator[tuple[Decoder, Decoded]]:
    """Every frame of a video, and the decoder that gave it, which knows of damage; see Decoder."""
    interval = source.interval
    given = 0
    for count in (threads, 1):
        with open_video(source.path) as (container, stream):
            ticks = interval / stream.time_base if interval else None
            decoder = Decoder(container, stream, threads=count, interval=ticks, stop_at_damage=stop_at_damage)
            for one in islice(decoder, given, None):
                yield decoder, one
                given += 1
        if not decoder.unfinished:
            return


def decoded_times(source: Source) -> np.ndarray:
    """What `frame_times` says, by decoding all."""
    places, ticks = [], []
    with open_video(source.path) as (container, stream):
        clock = float(stream.time_base)
        stored = None if source.stores_times else np.sort([tick_of(packet) for packet, _ in Packets(container, stream)])
    for _, one in decoded(source, threads=decoding_threads()):
        places.append(one.index)
        ticks.append(one.tick)
    if not places:
        raise ItemError(f"{source.path} has no frame that can be decoded", "check the file, or encode it again")
    if not source.stores_times and len(stored) > places[-1]:  # what AVI says of times is right for packets only
        return (stored[: places[-1] + 1] - stored[0]) * clock
    times = np.interp(np.arange(places[-1] + 1), places, ticks) * clock
    return times - (source.start if source.stores_times else times[0])


def missing_bytes(path) -> bool | None:
    """Whether a file is shorter than its own outermost parts say; None where its format has none that say it.

    They are the boxes of mp4 (ISO/IEC 14496-12), the elements of Matroska (RFC 8794) and the chunks of AVI (RIFF); ASF has
    its size in its header, a GIF has its mark of the end. True also where these parts are broken.
    """
    size, end = os.path.getsize(path), 0
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            part_size = _box_size
        elif head[:4] == b"\x1a\x45\xdf\xa3":
            part_size = _element_size
        elif head[:4] == b"RIFF":
            part_size = _chunk_size
        elif head[:4] == b"GIF8":
            file.seek(max(0, size - 64))
            return not file.read().rstrip(b"\0").endswith(b";")
        elif head[:4] == b"\x30\x26\xb2\x75":
            _, found, properties = file.read(1 << 16).partition(ASF_FILE_PROPERTIES)
            stated = int.from_bytes(properties[24:32], "little")  # after the object's size and the file's number
            return stated > size if found and stated else None
        else:
            return None
        while end < size:
            file.seek(end)
            head = file.read(16)
            length = part_size(head)
            if length is None:
                return None
            if not length:
                file.seek(max(0, size - 16))
                return bool((head + file.read()).strip(b"\0"))  # zeros up to the end are padding, else it is damage
            end += length
    return end > size


def _warn_of_boxes(path, frame) -> None:
    """Say what an mp4 holds that is not read: other mp4 files that `cat` appended, a clean aperture (ISO/IEC 14496-12)."""
    headers = list(mp4_headers(path))
    if len(headers) > 1:
        log("warning", file=str(path), reason="other mp4 files are appended to it, of which nothing is read")
    _, found, fractions = headers[0].partition(CLEAN_APERTURE) if headers else (b"", b"", b"")
    if found and len(fractions) >= 16:
        numbers = [int.from_bytes(fractions[at : at + 4], "big") for at in range(0, 16, 4)]
        width, height = numbers[0] / max(1, numbers[1]), numbers[2] / max(1, numbers[3])
        if (round(width), round(height)) != (frame.width, frame.height):
            reason = (
                f"its clean aperture of {width:.0f}x{height:.0f} is not applied: all of {frame.width}x{frame.height} is read"
            )
            log("warning", file=str(path), reason=reason)


def mp4_headers(path) -> Iterator[bytes]:
    """The boxes "moov" of an mp4, which describe it, as far as they are not absurdly long."""
    size, end = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while end < size:
            file.seek(end)
            head = file.read(16)
            length = _box_size(head) or size
            if head[4:8] == b"moov":
                yield head + file.read(min(length, LONGEST_HEADER))
            end += length


def _box_size(head: bytes) -> int | None:
    """Bytes of a box of mp4 by its first 16; None: to the end of the file, however long; 0: this is no box."""
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    elif length == 0:
        return None
    return length if length >= 8 and head[4:8].isalnum() else 0


def _element_size(head: bytes) -> int | None:
    """The same of an element of Matroska: an identifier and a size, both of as many bytes as their first one has zeros."""
    id_bytes = 9 - head[0].bit_length()
    first = head[id_bytes] if id_bytes < len(head) else 0
    size_bytes = 9 - first.bit_length()
    digits = head[id_bytes : id_bytes + size_bytes]
    if id_bytes > 4 or size_bytes > 8 or len(digits) < size_bytes:
        return 0
    value = int.from_bytes(digits, "big") - (1 << 7 * size_bytes)
    return None if value == (1 << 7 * size_bytes) - 1 else id_bytes + size_bytes + value


def _chunk_size(head: bytes) -> int:
    """The same of a chunk of RIFF, which has an even length."""
    length = int.from_bytes(head[4:8], "little")
    return 8 + length + length % 2 if head[:4] in (b"RIFF", b"JUNK") and length else 0


def _declared_duration(container, stream, start: float) -> float:
    """Seconds of picture that the file promises, 0.0 where it promises none.

    The container's own figure counts only where there is no other stream, which could be longer than the picture.
    """
    end = 0.0
    if stream.duration and container.format.name not in ONE_DURATION:
        begin = min(start, float((stream.start_time or 0) * stream.time_base))  # which may be later, by a fault
        end = begin + float(stream.duration * stream.time_base)
    elif match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(float, match.groups())
        end = hours * 3600 + minutes * 60 + seconds
    elif container.duration and len(container.streams) == 1:
        end = container.duration / av.time_base
    return max(0.0, end - start)


def _check_size(path, width: int, height: int):
    if width * height > MAX_PIXELS:
        raise ItemError(f"{path} claims {width}x{height} pixels, more than {MAX_PIXELS} in all", "scale it down")
