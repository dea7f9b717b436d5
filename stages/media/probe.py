"""What a video file is: opened safely, described before any frame of it is used."""

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np

from stages.runtime.errors import ItemError

# Only containers that hold their own data: a playlist or a concat script could name other files or URLs.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,ivf,yuv4mpegpipe,nut,mxf,mp3,wav,flac,aac"
)
# Options of libavformat, for PyAV and for the ffmpeg program alike.
SAFE_INPUT = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}

MAX_PIXELS = 1 << 26  # 8192 x 8192: 200 MB for one RGB frame; more is a broken header or a decompression bomb

MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
TRANSFERS = {1: "bt709", 6: "bt601", 8: "linear", 13: "srgb", 14: "bt2020", 15: "bt2020", 16: "pq", 18: "hlg"}
RANGES = {1: "limited", 2: "full"}

RATE_PACKETS = 400  # enough to see a phone's or a screen recorder's varying rate, cheap in a file of any length


@dataclass(frozen=True)
class Source:
    """A video file as its header and first frame describe it.

    `width`, `height` are pixels as displayed: upright, with square pixels. `fps` is the average rate, `duration` the
    seconds that the file declares for its picture (0.0: it does not), `start` the seconds of its first frame on the
    file's own clock. `declared_frames` is the container's own count (None: it has none) and may be wrong. `rotation` is
    how many degrees the stored picture is turned clockwise for display. `color_space`, `color_range` and `color_trc`
    are the stored tags in words, "" where the file has none.
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
    sample_aspect: Fraction
    constant_rate: bool
    color_space: str
    color_range: str
    color_trc: str
    has_audio: bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        return self.width, self.height

    @property
    def plain(self) -> bool:
        """Whether any decoder reads it right: constant rate, unrotated, square pixels, 8 bits."""
        return self.constant_rate and not self.rotation and self.sample_aspect == 1 and self.bit_depth == 8


def local_url(path) -> str:
    """A name that libavformat takes for a local file, whatever characters are in it."""
    return "file:" + os.path.abspath(path)


@contextmanager
def open_video(path):
    """Open a local video for reading: yields (container, its picture stream). Raises ItemError."""
    path = Path(path)
    if not path.is_file():
        raise ItemError(f"no video file at {path}", "check the path")
    if path.stat().st_size == 0:
        raise ItemError(f"{path} is empty", "copy or download it again")
    try:
        container = av.open(local_url(path), container_options=SAFE_INPUT)
    except av.FFmpegError as error:
        raise ItemError(
            f"{path} is not a readable video ({error.strerror})",
            "give a whole mp4, mov, mkv, webm or avi; an mp4 cut off before its index (moov) cannot be read at all",
        ) from error
    with container:
        pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not pictures:
            raise ItemError(f"{path} has no picture" + " (sound only)" * bool(container.streams.audio), "give a video")
        stream = pictures[0]
        _check_size(path, stream.width, stream.height)
        yield container, stream


def probe(path) -> Source:
    """Describe the video at `path`.

    Raises ItemError: no such file, not a video, sound only, no frame that can be decoded, an absurd size.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        first, ticks = _beginning(path, container, stream)
        fps = Fraction(stream.average_rate or stream.guessed_rate or 25)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        width, height = max(1, round(first.width * aspect)), first.height
        _check_size(path, width, height)
        rotation = -first.rotation % 360
        if rotation % 180 == 90:
            width, height = height, width
        return Source(
            path=path,
            width=width,
            height=height,
            fps=fps,
            duration=_declared_duration(container, stream),
            start=float((stream.start_time or 0) * stream.time_base),
            declared_frames=stream.frames or None,
            codec=stream.codec_context.name,
            pix_fmt=first.format.name,
            bit_depth=first.format.components[0].bits,
            rotation=rotation,
            sample_aspect=aspect,
            constant_rate=_is_constant(np.sort(ticks), stream.time_base, fps),
            color_space=MATRICES.get(first.colorspace, ""),
            color_range=RANGES.get(first.color_range, ""),
            color_trc=TRANSFERS.get(first.color_trc, ""),
            has_audio=bool(container.streams.audio),
        )


def frame_times(source: Source) -> np.ndarray:
    """Seconds at which each frame is shown, from the first frame's start on, float64 [N], without decoding any.

    The one trustworthy count of frames short of decoding them all; of a truncated file, those that are there.
    """
    with open_video(source.path) as (container, stream):
        times = np.sort(np.fromiter(map(_tick, _displayed(container, stream)), np.int64)) * float(stream.time_base)
        return times - (source.start if stores_times(container) else times[:1])


def stores_times(container) -> bool:
    """Whether the container says when each frame is shown; AVI only says in which order they are decoded."""
    return container.format.name != "avi"


def _displayed(container, stream):
    """The stream's packets that become frames on display, in stored order, up to the first damaged one."""
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                return
            if packet.size and not packet.is_discard:
                yield packet
    except av.FFmpegError:
        return


def _tick(packet) -> int:
    """When a packet's frame is shown, or where the container does not say, is decoded; in the stream's time base."""
    return packet.pts if packet.pts is not None else packet.dts or 0


def _is_constant(ticks: np.ndarray, time_base: Fraction, fps: Fraction) -> bool:
    """Whether frames lie on an even grid, to one tick, and the file's average rate agrees with it."""
    shown = ticks[:-16] if len(ticks) > 48 else ticks  # stored after frames shown later: not all may have been read
    if len(shown) < 3:
        return True
    interval = (shown[-1] - shown[0]) / (len(shown) - 1)
    even = np.abs(shown - (shown[0] + interval * np.arange(len(shown)))).max() <= 1
    return bool(even and abs(interval * float(time_base * fps) - 1) < 0.005)


def _declared_duration(container, stream) -> float:
    """Seconds of picture that the file promises, 0.0 where it promises none.

    The container's own figure counts only where there is no sound that could be longer than the picture.
    """
    if stream.duration:
        return float(stream.duration * stream.time_base)
    end = 0.0
    if tag := stream.metadata.get("DURATION"):  # Matroska
        hours, minutes, seconds = tag.split(":")
        end = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    elif container.duration and not container.streams.audio:
        end = container.duration / av.time_base
    return max(0.0, end - float((stream.start_time or 0) * stream.time_base))


def _check_size(path, width: int, height: int):
    if width * height > MAX_PIXELS:
        raise ItemError(f"{path} claims {width}x{height} pixels, more than {MAX_PIXELS} in all", "scale it down")


def _beginning(path, container, stream):
    """The first frame, which alone tells rotation and colour tags, and the ticks of the first packets, in one pass."""
    first, ticks, damage = None, [], None
    for packet in islice(_displayed(container, stream), RATE_PACKETS):
        ticks.append(_tick(packet))
        try:
            first = first or next(iter(stream.decode(packet)), None)
        except av.FFmpegError as error:
            damage = damage or error
    if first is None and not damage:
        with suppress(av.FFmpegError):
            first = next(iter(stream.decode(None)), None)  # of a video so short that the decoder holds all of it
    if first is None and ticks:
        reason = f" ({damage.strerror})" if damage else ""
        raise ItemError(f"{path} has no frame that can be decoded{reason}", "check the file, or encode it again")
    if first is None:
        raise ItemError(f"{path} has no frames", "give a video with at least one frame")
    return first, ticks
