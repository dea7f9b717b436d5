"""Frames of a video, one at a time, and pictures, as upright RGB arrays."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.media.probe import MAX_PIXELS, Source, frame_times, open_video, probe, stores_times
from stages.runtime.errors import ItemError

# swscale's fast path rounds down and takes chroma from the nearest sample: frames come out 1 to 2 levels darker.
# These flags give the formula to within its rounding.
ACCURATE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
ACCURATE |= Interpolation.FULL_CHR_H_INP

MATRICES = {
    "bt709": Colorspace.ITU709,
    "bt601": Colorspace.ITU601,
    "fcc": Colorspace.FCC,
    "smpte240m": Colorspace.SMPTE240M,
    "bt2020": Colorspace.BT2020,
}


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: `index` from 0, `time` in seconds from the first frame on, `rgb` uint8 [H, W, 3] upright."""

    index: int
    time: float
    rgb: np.ndarray


class Truncated(ItemError):
    """A video ends before the end that it declares: `decoded` frames of about `declared` could be read."""

    def __init__(self, path: Path, decoded: int, declared: int):
        self.decoded, self.declared = decoded, declared
        super().__init__(
            f"{path} is truncated or damaged: {decoded} of {declared} frames could be read",
            "copy it again, or allow a truncated video to use the frames that are there",
        )


def available_threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def frames(video: Source | Path | str, *, accurate: bool = True, threads: int | None = None) -> Iterator[Frame]:
    """Every frame of a video in display order; memory does not grow with its length.

    `accurate` converts by the picture's own matrix and range with interpolated chroma: for frames that become pixels of
    the result. Otherwise swscale's default conversion: faster, 1 to 2 levels darker, fine for looking at.
    `threads` of the decoder (default: the cores of this process, at most 4).
    Raises ItemError for what is not a video, and Truncated after the last good frame of a damaged one.
    """
    source = video if isinstance(video, Source) else probe(video)
    with open_video(source.path) as (container, stream):
        yield from _frames(source, container, stream, accurate, threads)


def frames_near_end(source: Source, seconds: float, *, threads: int | None = None) -> Iterator[Frame]:
    """Frames from a keyframe at least `seconds` before the declared end on (all, where the file cannot be sought in).

    Their `index` counts from the first one yielded; `time` is the video's. Accurate conversion. Raises as `frames`.
    """
    with open_video(source.path) as (container, stream):
        if stores_times(container):
            target = source.start + max(0.0, source.duration - seconds)
            with suppress(av.FFmpegError):
                container.seek(int(target / stream.time_base), stream=stream)
        yield from _frames(source, container, stream, True, threads)


def _frames(source, container, stream, accurate, threads):
    stream.thread_type = "AUTO"
    stream.thread_count = threads or min(available_threads(), 4)
    to_rgb = _converter(source, accurate)
    index, time, length = 0, 0.0, float(1 / source.fps)
    times = None if stores_times(container) else frame_times(source)
    declared = source.declared_frames or round(source.duration * source.fps)
    try:
        for picture in _decode(container, stream):
            if times is not None:
                time = float(times[min(index, len(times) - 1)])
            elif picture.pts is not None:
                time = float(picture.pts * stream.time_base) - source.start
            else:
                time += length if index else 0.0
            length = float((picture.duration or 0) * stream.time_base) or length
            # Held until the next one exists: its memory is then reused, not handed back and faulted in anew (a tenth
            # of all time).
            frame = Frame(index, time, to_rgb(picture))
            yield frame
            index += 1
    except av.FFmpegError as error:
        raise Truncated(source.path, index, max(declared, index + 1)) from error
    # Some containers just end: the clock tells, since the count of frames in a header is not to be trusted.
    if source.duration and source.duration - (time + length) > 1.5 * max(length, float(1 / source.fps)):
        raise Truncated(source.path, index, max(declared, index + 1))


def _decode(container, stream):
    """Pictures of a stream; at damage, first those that the decoder still holds, then the error."""
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise av.InvalidDataError(0, "the file ends within a frame")
            yield from stream.decode(packet)
    except av.FFmpegError as damage:
        with suppress(av.FFmpegError):
            yield from stream.decode(None)
        raise damage


def _converter(source: Source, accurate: bool):
    """picture -> uint8 [H, W, 3], upright, square pixels."""
    options = {"format": "rgb24", "threads": 1}  # swscale's own threads cost more than they save here
    if source.sample_aspect != 1:
        options["width"] = source.height if source.rotation % 180 == 90 else source.width
    if accurate:
        options |= {"interpolation": ACCURATE, "dst_color_range": ColorRange.JPEG}
        if not source.pix_fmt.startswith(("rgb", "bgr", "gbr", "argb", "abgr", "pal")):
            options["src_colorspace"] = MATRICES[source.color_space or _usual_matrix(source)]
    turns = source.rotation // 90

    def to_rgb(picture) -> np.ndarray:
        rgb = picture.to_ndarray(**options)
        return np.ascontiguousarray(np.rot90(rgb, -turns) if turns else rgb)

    return to_rgb


def _usual_matrix(source: Source) -> str:
    """What players assume of an untagged picture: BT.709 from high definition on, else BT.601."""
    return "bt709" if source.height >= 720 or source.width >= 1280 else "bt601"


def read_picture(path) -> np.ndarray:
    """The picture at `path`, upright, as uint8 [H, W, 3]. Raises ItemError: missing, not a picture, damaged, absurd size."""
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ItemError(f"{path} claims {picture.width}x{picture.height} pixels", "scale it down")
            return as_rgb(picture)
    except FileNotFoundError as error:
        raise ItemError(f"no picture at {path}", "check the path") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ItemError(f"{path} is not a picture that can be read ({error})", "give a PNG or JPEG file") from error


def as_rgb(picture: Image.Image) -> np.ndarray:
    """A picture as it looks on white: upright, uint8 [H, W, 3]. 16 bits of grey become 8."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # PIL itself would cut off what lies above 255
        grey = np.round(np.asarray(picture) / 257).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))
