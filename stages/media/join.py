"""Joining of videos, or of frames with their times, to one video that is encoded once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from itertools import islice
from math import floor
from pathlib import Path
from typing import Any, cast

import numpy as np

from stages.media.fit import fit_image
from stages.media.marks import Marks
from stages.media.probe import Source, frame_times, probe
from stages.media.read import Frame, frames
from stages.media.sound import Sound, check_sound, find_sound
from stages.media.write import VideoWriter
from stages.runtime.errors import ItemError, UsageError
from stages.runtime.kinds import COUNT
from stages.runtime.log import log

EVEN = 0.002  # seconds that a frame may be off a regular grid: some containers store milliseconds
MAX_FRAME_SECONDS = 3600.0  # that one frame may be shown
MAX_FRAMES = cast(int, COUNT["maximum"])


@dataclass(frozen=True)
class Joined:
    """The video that `join` wrote: its frames, those of the source (0: none) and of each part, and whether it has sound."""

    frames: int
    source_frames: int
    part_frames: list[int]
    has_audio: bool


def join(
    parts: Sequence[Path | str],
    output: Path,
    *,
    fps: Fraction | float,
    repeated: Sequence[int] = (),
    source: Path | str | None = None,
    fit: str = "crop",
    crf: int = 17,
    keep_audio: bool = True,
    allow_truncated: bool = False,
    marks: Marks | None = None,
) -> Joined:
    """Write `parts`, videos of one size in order, to the mp4 `output` at exactly `fps`, without repeated frames.

    The first frames of a part repeat the last ones before it, and are dropped unless the video begins with them. `repeated`
    has their number for each part; by default it is 1. A part's own rate is ignored: each of its frames becomes one frame
    of the video.

    `source` is a video that comes first. It is resampled to `fps` by its timestamps and fitted to the size of the parts by
    `fit`. With `keep_audio`, its sound is kept; with `allow_truncated`, a truncated source is accepted.

    Raises UsageError without parts; ItemError for a video that cannot be read completely, parts of different sizes, and a
    part whose only frame would be dropped.
    """
    if not parts:
        raise UsageError("there are no parts to join", "give at least one video")
    size = _common_size(parts)
    rate = Fraction(fps).limit_denominator(1001)
    end = 0.0
    sound: Sound | None = None
    if source:
        first = probe(source)
        end = _end(first, allow_truncated)
        if end * rate > MAX_FRAMES:
            raise ItemError(
                f"{first.path} lasts {timedelta(seconds=round(end))}, and a video has {MAX_FRAMES} frames at most",
                "cut the video, or leave the source out",
            )
        if end and keep_audio:
            sound = find_sound(first.path, first.start, _nearest(end * rate) / float(rate))
    source_frames = 0
    part_frames: list[int] = []
    with VideoWriter(output, *size, rate, crf=crf, sound=sound, marks=marks) as video:
        if source:
            for rgb in at_constant_rate(frames(first, allow_damage=allow_truncated), rate, end):
                video.write(fit_image(rgb, size, fit))
            source_frames = video.frames
        for part, count in zip(parts, repeated or [1] * len(parts), strict=True):
            before = video.frames
            for frame in islice(frames(part), count if before else 0, None):
                video.write(frame.rgb)
            if video.frames == before:
                raise ItemError(f"{part} has only the frame that repeats the one before it", "make it longer")
            part_frames.append(video.frames - before)
    check_video(output, np.arange(video.frames) / float(rate), rate)
    if sound:
        check_sound(output, sound)
    return Joined(video.frames, source_frames, part_frames, sound is not None)


def assemble(
    images: Iterable[np.ndarray],
    times: Sequence[float],
    output: Path,
    *,
    size: tuple[int, int],
    fps: Fraction | float,
    crf: int = 17,
    sound_of: Source | None = None,
    marks: Marks | None = None,
) -> None:
    """Write RGB images, uint8 [H, W, 3], of `size` (width, height) to the mp4 `output`, each shown at its time.

    `times` are seconds, ascending; the video begins at the first of them. Times of a constant rate `fps` give a
    video of that rate. The sound of `sound_of`, if it has any, is added by the same clock.
    Raises ItemError if the video on disk does not have the frames that were written.
    """
    rate, start, shown = Fraction(fps).limit_denominator(1001), times[0], np.array(times) - times[0]
    even = np.arange(len(shown)) / float(rate)
    constant = bool(np.abs(shown - even).max(initial=0.0) < EVEN)
    end = len(shown) / float(rate) if constant else float(shown[-1] + np.median(np.diff(shown)))
    sound = find_sound(sound_of.path, sound_of.start + start, end) if sound_of else None
    shown_at = None if constant else shown.tolist()
    with VideoWriter(output, *size, rate, crf=crf, times=shown_at, sound=sound, marks=marks) as video:
        for rgb in images:
            video.write(rgb)
    check_video(output, even if constant else shown, rate if constant else None)
    if sound:
        check_sound(output, sound)


def at_constant_rate(stream: Iterable[Frame], fps: Fraction, end: float) -> Iterator[np.ndarray]:
    """Resample frames to `fps`, each the nearest in time, rounded as by ffmpeg's fps filter; the last one is always kept.

    A frame is due at the tick nearest to its time. Of several frames due at one tick, the last is shown. A frame is repeated
    until the next one is due. `end`: seconds at which the last frame ends.
    """
    shown: Any = None
    tick = 0
    for frame in stream:
        due = _nearest(frame.time * fps)
        while shown is not None and tick < due:
            yield shown
            tick += 1
        shown = frame.rgb
    for _ in range(tick, max(_nearest(end * fps), tick + 1)):
        yield shown


def _nearest(ticks: Fraction | float) -> int:
    """Round half up. Times are floats, and their error must not decide a tie."""
    return floor(Fraction(ticks).limit_denominator(10**6) + Fraction(1, 2))


def _end(source: Source, allow_truncated: bool) -> float:
    """Seconds at which the last frame of a video ends; for a truncated video, the last frame present.

    Raises ItemError for a frame that is shown for more than an hour: it would be repeated as long. A declared duration with
    such a last frame is ignored, with a warning in the log.
    """
    times = frame_times(source)
    gap = np.diff(times).max(initial=0.0)
    if gap > MAX_FRAME_SECONDS:
        number = int(np.diff(times).argmax())
        raise ItemError(
            f"{source.path} shows frame {number} for {timedelta(seconds=round(gap))}, from {times[number]:.3f} s on",
            "cut that out of the video, or leave the source out",
        )
    last = float(times[-1])
    if too_long := source.duration - last > MAX_FRAME_SECONDS:
        declared, shown = (timedelta(seconds=round(seconds)) for seconds in (source.duration, last))
        log("warning", file=str(source.path), reason=f"its declared duration is {declared} and its last frame is at {shown}")
    usual = last + float(1 / source.fps)
    return usual if allow_truncated or too_long or not source.duration else max(source.duration, last + 1e-3)


def _common_size(parts: Sequence[Path | str]) -> tuple[int, int]:
    sizes = {part: probe(part).size for part in map(Path, parts)}
    size = sizes[Path(parts[0])]
    for part, other in sizes.items():
        if other != size:
            raise ItemError(
                f"{part} is {other[0]}x{other[1]}, the part before it {size[0]}x{size[1]}", "make all parts of one size"
            )
    return size


def check_video(output: Path, times: np.ndarray, fps: Fraction | None) -> None:
    """Raise ItemError unless the video shows its frames at `times` [N], and, if given, at the constant rate `fps`."""
    written = probe(output)
    held = frame_times(written)
    late = np.abs(held - times).max(initial=0.0) if len(held) == len(times) else 0.0
    if len(held) != len(times) or late > EVEN or (fps and (written.fps != fps or not written.constant_rate)):
        raise ItemError(
            f"{output} has {len(held)} frames at {written.fps} per second instead of {len(times)} at {fps or 'their times'}",
            "run again; report it if it happens twice",
        )
