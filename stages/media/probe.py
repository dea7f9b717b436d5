"""Safe opening of video files, and their description from headers and first frames."""

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
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.video.stream import VideoStream

from stages.media.decoding import (
    GUESSING,
    RATE_PACKETS,
    Decoded,
    Decoder,
    Packets,
    decoding_threads,
    has_hidden_alpha,
    stores_times,
    time_base,
    timestamp,
)
from stages.media.filters import buffer_source, link_filters
from stages.runtime.errors import ItemError
from stages.runtime.log import log

# Only containers that hold their own data: a playlist or a concat script can name other files or URLs.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,yuv4mpegpipe,nut,mxf,mp3,wav,flac,aac"
)
# Options of libavformat, for PyAV and for the ffmpeg program.
SAFE_INPUT = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}

MAX_PIXELS = 1 << 26  # 8192 x 8192: 200 MB for an RGB frame; a larger size is a broken header or a decompression bomb

MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
TRANSFERS = {1: "bt709", 6: "bt601", 8: "linear", 13: "srgb", 14: "bt2020", 15: "bt2020", 16: "pq", 18: "hlg"}
PRIMARIES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 11: "p3", 12: "p3"}
# Colour tags that are not converted, by their numbers in ITU-T H.273
UNKNOWN_MATRICES = {8: "YCgCo", 11: "SMPTE 2085", 12: "chroma-derived", 13: "chroma-derived", 14: "ICtCp"}
UNKNOWN_TRANSFERS = {9: "log 100:1", 10: "log 316:1", 17: "SMPTE 428"}
UNKNOWN_PRIMARIES = {8: "film", 10: "SMPTE 428 (XYZ)"}
RANGES = {1: "limited", 2: "full"}
NOT_CONVERTED = ("dvh1", "dvhe", "dav1", "dvav", "dva1")  # codec tags of Dolby Vision without a standard base layer

# Containers without durations of streams: libavformat gives the container's duration instead.
ONE_DURATION = ("asf", "flv", "matroska,webm", "nut")
CLEAN_APERTURE = b"\0\0\0\x28clap"  # size and name of the box
MAX_HEADER = 1 << 26  # bytes
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

NOT_VIDEO = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails

# Errors of the libraries for damaged files. UnicodeDecodeError is a ValueError.
READER_ERRORS = (av.FFmpegError, ValueError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Source:
    """A video file as its header and its first frames describe it.

    - `width`, `height`: pixels as displayed, upright and with square pixels.
    - `fps`: the average frame rate, computed from the frames' times if the file states none.
    - `constant_rate`: frames are evenly spaced. `on_grid`: they are multiples of one interval, some of which are missing.
    - `duration`: seconds of video that the file declares, 0.0 if it declares none.
    - `start`: seconds of the first frame on the file's own clock.
    - `declared_frames`: the container's own count of frames, which may be wrong; None if it has none.
    - `mirrored`, `rotation`: for display, a stored frame is mirrored left to right, then rotated clockwise by degrees.
    - `color_space`, `color_range`, `color_trc`, `color_primaries`: names of the stored tags, "" for a missing one.
    - `stream`: index of the stream that is read. `container`: libavformat's name of the format.
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
        """Seconds between frames on a grid, by which lost frames are counted; None if they cannot be counted.

        They cannot in mp4, which lists the frames that it has, nor where timestamps are guesses.
        """
        counted = self.on_grid and self.container not in GUESSING and not self.container.startswith("mov")
        return 1 / self.fps if counted else None

    @property
    def stores_times(self) -> bool:
        """Whether the file stores when each frame is shown; AVI stores only the order of decoding."""
        return stores_times(self.container)


def local_url(path: Path | str) -> str:
    """A URL that libavformat reads as a local file, whatever characters are in its name."""
    return "file:" + os.path.abspath(path)


@contextmanager
def open_video(path: Path | str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a local video for reading: yields (container, its video stream).

    Raises ItemError for a file that is no readable video, and for the libraries' errors inside the block.
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
            f"{path} is not a readable video ({error_text(error)})",
            "give a complete mp4, mov, mkv, webm or avi; an mp4 that is cut off before its index (moov) cannot be read",
        ) from error
    with container, reading_errors(path):
        yield container, video_stream(path, container)


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn the libraries' errors inside the block into an ItemError that names the video."""
    try:
        yield
    except READER_ERRORS as error:
        raise ItemError(f"{path} cannot be read ({error_text(error)})", "check the file, or encode it again") from error


def error_text(error: Exception) -> str:
    """The message of a library's error, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def video_streams(container: InputContainer) -> list[VideoStream]:
    """The video streams of a container, best first, without cover art.

    Streams with a decoder come before those without, then those with the disposition "default", then larger ones.
    """
    streams = [s for s in container.streams.video if not s.disposition & NOT_VIDEO]

    def rank(stream: VideoStream) -> tuple[bool, bool, int]:
        codec = stream.codec_context
        default = bool(stream.disposition & av.stream.Disposition.default)
        return codec is None, not default, -(codec.width * codec.height if codec else 0)

    return sorted(streams, key=rank)


def video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The best video stream of a container. Raises ItemError if there is none, or none that can be decoded."""
    streams = video_streams(container)
    if not streams:
        sound_only = " (sound only)" if container.streams.audio else ""
        raise ItemError(f"{path} has no video stream{sound_only}", "give a video")
    codec = streams[0].codec_context
    if codec is None:
        raise ItemError(f"{path} has a codec without a decoder", "encode it again, as H.264 for example")
    _check_size(path, codec.width, codec.height)
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    return streams[0]


def probe(path: Path | str) -> Source:
    """Describe the video at `path`.

    Raises ItemError for a missing file, a file that is no video or has only sound, a video without a frame that can be
    decoded, and a size above `MAX_PIXELS`.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        if (count := len(video_streams(container))) > 1:
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
        fps, constant_rate, on_grid = frame_rate(ticks, read_all, stream)
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
        start = float(first.tick * time_base(stream)) if has_times else 0.0
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


def _warn_of_colours(path: Path, stream: VideoStream, frame: av.VideoFrame) -> None:
    names = (
        "Dolby Vision without a base layer" if stream.codec_context.codec_tag in NOT_CONVERTED else "",
        UNKNOWN_MATRICES.get(frame.colorspace),
        UNKNOWN_TRANSFERS.get(frame.color_trc),
        UNKNOWN_PRIMARIES.get(frame.color_primaries),
    )
    if any(names):
        listed = ", ".join(name for name in names if name)
        log("warning", file=str(path), reason=f"its colours ({listed}) cannot be converted and are read as BT.709")


def side_data(frame: av.VideoFrame) -> Any:
    """A frame's side data. Kinds that PyAV does not know are removed first, since PyAV raises an error for them."""
    while True:
        try:
            return frame.side_data
        except ValueError as error:
            unknown = re.match(r"(\d+) is not a valid", str(error))
            if not unknown:
                raise
            graph = Graph()
            link_filters(graph, buffer_source(graph, frame), graph.add("sidedata", f"mode=delete:type={unknown[1]}"))
            graph.push(frame)
            frame = cast(av.VideoFrame, graph.pull())


def orientation(path: Path, frame: av.VideoFrame) -> tuple[int, bool]:
    """The clockwise rotation of a frame for display, in degrees, and whether it is mirrored left to right before that.

    Both follow from its display matrix, which maps stored places (x, y) to displayed ones (a x + c y, b x + d y), y
    downwards (ISO/IEC 14496-12). Angles are rounded to quarter turns, with a warning in the log.
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
        log("warning", file=str(path), reason=f"its rotation of {quarters * 90:.0f} degrees is rounded to quarter turns")
    return round(quarters) % 4 * 90, mirrored


def frame_rate(ticks: np.ndarray, read_all: bool, stream: VideoStream) -> tuple[Fraction, bool, bool]:
    """Frames per second, whether frames are evenly spaced, and whether they are on a grid.

    `ticks` are the sorted presentation times of the first frames of the stream, or of all if `read_all`. The stream's
    average rate is used unless these times contradict it: for containers that state no rate, libavformat returns the rate of
    their clock.
    """
    stated = Fraction(stream.average_rate or stream.guessed_rate or 0)
    late = stream.codec_context.reorder_depth + 2  # frames that are stored after others shown later
    shown = ticks if read_all else ticks[:-late]
    if len(shown) < 3 or shown[-1] == shown[0] or (stated and stream.container.format.name in GUESSING):
        return stated or Fraction(25), True, True
    clock, steps = 1 / time_base(stream), len(shown) - 1
    span = int(shown[-1] - shown[0])
    even = bool(np.abs(shown - (shown[0] + span / steps * np.arange(len(shown)))).max() <= 1)
    own = steps * clock / span
    usual = clock / max(Fraction(1, 1000), Fraction(float(np.median(np.diff(shown)))))
    if stated and (abs(stated / own - 1) < 0.005 or (not even and stated < 1.5 * max(own, usual))):
        return stated, even and abs(stated / own - 1) < 0.005, _on_grid(shown, clock / stated)
    if even:
        common = (Fraction(round(own)), Fraction(round(own * 1001 / 1000) * 1000, 1001))
        own = next((fps for fps in common if fps and abs(steps * clock / fps - span) <= 1), own)
    own = own.limit_denominator(1001) or own
    return own, even and read_all, _on_grid(shown, clock / own)


def _on_grid(ticks: np.ndarray, interval: Fraction) -> bool:
    """Whether frames are multiples of an interval, some of which may be missing."""
    steps = np.diff(ticks) / float(interval)
    return bool((np.abs(steps - steps.round()) < 0.05 + 1 / float(interval)).all() and (steps.round() == 1).mean() > 0.5)


def frame_times(source: Source) -> np.ndarray:
    """Seconds at which each frame is shown, relative to the first frame, float64 [N].

    They come from the packets where each packet is known to be a frame, else from decoding all. Frames lost to damage are
    included.
    """
    timeline = packet_timeline(source)
    return decode_times(source) if timeline is None else timeline.times


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each frame is shown: `times`, seconds relative to the first frame, float64 [N], and `ticks`, int64 [N].

    Decoding can start at each keyframe: its tick is in `keys`, int64 [K], and the tick to seek to in `entries`, int64 [K].
    Both are empty where seeking is unreliable. `places`, int64 [M, 3], has the tick, the byte offset and the size of each
    packet, in ascending order of ticks.
    """

    times: np.ndarray
    ticks: np.ndarray
    keys: np.ndarray
    entries: np.ndarray
    places: np.ndarray

    def has(self, packet: av.Packet) -> bool:
        """Whether a packet is the one that was found at its tick before."""
        tick = timestamp(packet)
        row = self.places[min(int(np.searchsorted(self.places[:, 0], tick)), len(self.places) - 1)]
        return row.tolist() == [tick, -1 if packet.pos is None else packet.pos, packet.size]


def packet_timeline(source: Source) -> Timeline | None:
    """The timeline of a video from its packets alone; None where a packet may not be a frame."""
    if source.container in GUESSING:
        return None
    may_be_fields = source.interlaced and source.container in ("mpegts", "matroska,webm")
    if may_be_fields or source.codec == "vp8":  # has packets that are not shown
        return None
    by_order = source.container == "mpegts"  # seeks by decoding time
    packet_ticks, packet_places = array("q"), array("q")  # compact, for long videos
    entries: dict[int, int] = {}
    with open_video(source.path) as (container, stream):
        packets, clock, hidden_alpha = Packets(container, stream), float(time_base(stream)), has_hidden_alpha(stream)
        for packet, damaged in packets:
            if damaged or not (entries or packet.is_keyframe):
                return None
            if source.codec == "mpeg4" and packet.size < 10:  # "not coded": the frame before it is shown again
                return None
            if packet.is_keyframe:
                entries[timestamp(packet)] = packet.dts if by_order and packet.dts is not None else timestamp(packet)
            if not packet.is_discard:
                packet_ticks.append(timestamp(packet))
            packet_places.extend((timestamp(packet), -1 if packet.pos is None else packet.pos, packet.size))
    if packets.ends_early or packets.restarts or not packet_ticks:
        return None
    ticks = np.sort(np.array(packet_ticks))
    times = ticks * clock
    if not np.diff(ticks).all() or (source.stores_times and abs(times[0] - source.start) > clock / 2):
        return None
    if source.stores_times and source.interval and np.diff(times).max(initial=0.0) > 1.5 * float(source.interval):
        return None  # some may have been lost
    can_seek = source.stores_times and not source.interlaced and not hidden_alpha
    seekable = np.array(sorted(entries.items()) if can_seek else [], np.int64).reshape(-1, 2)
    places = np.array(packet_places).reshape(-1, 3)
    return Timeline(times - times[0], ticks, seekable[:, 0], seekable[:, 1], places[places[:, 0].argsort()])


def decode_video(source: Source, *, threads: int, stop_at_damage: bool = False) -> Iterator[tuple[Decoder, Decoded]]:
    """Yield (decoder, frame) for every frame; if several threads keep back frames at the end, one thread decodes them."""
    interval = source.interval
    given = 0
    for count in (threads, 1):
        with open_video(source.path) as (container, stream):
            ticks = interval / time_base(stream) if interval else None
            decoder = Decoder(container, stream, threads=count, interval=ticks, stop_at_damage=stop_at_damage)
            for one in islice(decoder, given, None):
                yield decoder, one
                given += 1
        if not decoder.unfinished:
            return


def decode_times(source: Source) -> np.ndarray:
    """`frame_times` by decoding all frames. Raises ItemError if none can be decoded."""
    places, ticks = [], []
    with open_video(source.path) as (container, stream):
        clock = float(time_base(stream))
        stored = None if source.stores_times else np.sort([timestamp(packet) for packet, _ in Packets(container, stream)])
    for _, one in decode_video(source, threads=decoding_threads()):
        places.append(one.index)
        ticks.append(one.tick)
    if not places:
        raise ItemError(f"{source.path} has no frame that can be decoded", "check the file, or encode it again")
    if stored is not None and len(stored) > places[-1]:  # AVI has correct times for packets only
        return (stored[: places[-1] + 1] - stored[0]) * clock
    times = np.interp(np.arange(places[-1] + 1), places, ticks) * clock
    return times - (source.start if source.stores_times else times[0])


def missing_bytes(path: Path) -> bool | None:
    """Whether a file is shorter than the sizes of its outermost parts; None for a format without such sizes.

    These parts are the boxes of mp4 (ISO/IEC 14496-12), the elements of Matroska (RFC 8794) and the chunks of AVI (RIFF).
    ASF has its size in its header, and a GIF ends with a trailer. True also for broken parts.
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
            stated = int.from_bytes(properties[24:32], "little")  # after the object's size and the file's GUID
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
                return bool((head + file.read()).strip(b"\0"))  # zeros up to the end are padding, anything else is damage
            end += length
    return end > size


def _warn_of_boxes(path: Path, frame: av.VideoFrame) -> None:
    """Warn of parts of an mp4 that are not read: mp4 files appended by `cat`, a clean aperture (ISO/IEC 14496-12)."""
    headers = list(mp4_headers(path))
    if len(headers) > 1:
        log("warning", file=str(path), reason="other mp4 files are appended to it, and are not read")
    _, found, fractions = headers[0].partition(CLEAN_APERTURE) if headers else (b"", b"", b"")
    if found and len(fractions) >= 16:
        numbers = [int.from_bytes(fractions[at : at + 4], "big") for at in range(0, 16, 4)]
        width, height = numbers[0] / max(1, numbers[1]), numbers[2] / max(1, numbers[3])
        if (round(width), round(height)) != (frame.width, frame.height):
            reason = (
                f"its clean aperture of {width:.0f}x{height:.0f} is not applied: all of {frame.width}x{frame.height} is read"
            )
            log("warning", file=str(path), reason=reason)


def mp4_headers(path: Path) -> Iterator[bytes]:
    """The "moov" boxes of an mp4, each up to `MAX_HEADER` bytes."""
    size, end = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while end < size:
            file.seek(end)
            head = file.read(16)
            length = _box_size(head) or size
            if head[4:8] == b"moov":
                yield head + file.read(min(length, MAX_HEADER))
            end += length


def _box_size(head: bytes) -> int | None:
    """Size of an mp4 box in bytes, from its first 16; None: it extends to the end of the file; 0: it is no box."""
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    elif length == 0:
        return None
    return length if length >= 8 and head[4:8].isalnum() else 0


def _element_size(head: bytes) -> int | None:
    """Size of a Matroska element, likewise. The first byte of its identifier, and of its size, gives their lengths."""
    id_bytes = 9 - head[0].bit_length()
    first = head[id_bytes] if id_bytes < len(head) else 0
    size_bytes = 9 - first.bit_length()
    digits = head[id_bytes : id_bytes + size_bytes]
    if id_bytes > 4 or size_bytes > 8 or len(digits) < size_bytes:
        return 0
    value = int.from_bytes(digits, "big") - (1 << 7 * size_bytes)
    return None if value == (1 << 7 * size_bytes) - 1 else id_bytes + size_bytes + value


def _chunk_size(head: bytes) -> int:
    """Size of a RIFF chunk, likewise; chunks have even lengths."""
    length = int.from_bytes(head[4:8], "little")
    return 8 + length + length % 2 if head[:4] in (b"RIFF", b"JUNK") and length else 0


def _declared_duration(container: InputContainer, stream: VideoStream, start: float) -> float:
    """Seconds of video that the file declares, 0.0 if it declares none.

    The container's own duration counts only if it has no other stream, which could be longer than the video.
    """
    end = 0.0
    if stream.duration and container.format.name not in ONE_DURATION:
        begin = min(start, float((stream.start_time or 0) * time_base(stream)))  # a faulty start_time may be later
        end = begin + float(stream.duration * time_base(stream))
    elif match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(float, match.groups())
        end = hours * 3600 + minutes * 60 + seconds
    elif container.duration and len(container.streams) == 1:
        end = container.duration / av.time_base
    return max(0.0, end - start)


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ItemError(f"{path} claims {width}x{height} pixels, more than {MAX_PIXELS} in all", "scale it down")
