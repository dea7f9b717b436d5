"""The parts of a chain, and the video they continue, as one film that is encoded once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from itertools import islice
from math import floor
from pathlib import Path

import numpy as np

from stages.media.fit import fit_image
from stages.media.probe import Source, frame_times, probe
from stages.media.read import Frame, frames
from stages.media.sound import check_sound, find_sound
from stages.media.write import VideoWriter
from stages.runtime.errors import ItemError, UsageError
from stages.runtime.kinds import COUNT
from stages.runtime.log import log

EVEN = 0.002  # seconds that a frame may be off an even grid: some containers count in milliseconds
LONGEST_HOLE = 3600.0  # seconds that one frame may be shown
MOST_FRAMES = COUNT["maximum"]


@dataclass(frozen=True)
class Film:
    """What was written: frames in all, of the source in front (0: none), of each part, and whether it has sound."""

    frames: int
    source_frames: int
    part_frames: list[int]
    has_audio: bool


def join(
    parts,
    output,
    *,
    fps,
    source=None,
    fit: str = "crop",
    crf: int = 17,
    keep_audio: bool = True,
    allow_truncated: bool = False,
) -> Film:
    """Write `parts` (paths of videos of one size, in order) to the mp4 `output` at exactly `fps`, seams removed.

    Frame 0 of a part reproduces the last frame of what lies before it, so it is left out wherever something does.
    `source` (a path) comes in front: at the film's rate by its timestamps, fitted to the film's size by `fit`, its
    sound kept under it unless told otherwise; a truncated one is refused unless allowed. A part's own rate is not looked
    at: its frames are shown one per film frame.
    Raises ItemError for a video that cannot be read whole, parts of different sizes or of one frame that would vanish.
    """
    if not parts:
        raise UsageError("there are no parts to join", "give at least one video")
    size = _common_size(parts)
    fps = Fraction(fps).limit_denominator(1001)
    front = probe(source) if source else None
    end = _end(front, allow_truncated) if front else 0.0
    if end * fps > MOST_FRAMES:
        raise ItemError(
            f"{front.path} lasts {timedelta(seconds=round(end))}, and a film has {MOST_FRAMES} frames at most",
            "cut the video, or leave the source out of the film",
        )
    sound = find_sound(front.path, front.start, _nearest(end * fps) / float(fps)) if end and keep_audio else None
    source_frames, part_frames = 0, []
    with VideoWriter(output, *size, fps, crf=crf, sound=sound) as film:
        if front:
            for rgb in at_constant_rate(frames(front, allow_damage=allow_truncated), fps, end):
                film.write(fit_image(rgb, size, fit))
            source_frames = film.frames
        for part in parts:
            before = film.frames
            for frame in islice(frames(part), 1 if before else 0, None):
                film.write(frame.rgb)
            if film.frames == before:
                raise ItemError(f"{part} has only the frame that repeats the one before it", "make it longer")
            part_frames.append(film.frames - before)
    check_film(output, np.arange(film.frames) / float(fps), fps)
    if sound:
        check_sound(output, sound)
    return Film(film.frames, source_frames, part_frames, sound is not None)


def assemble(
    images: Iterable[np.ndarray],
    times: Sequence[float],
    output,
    *,
    size,
    fps,
    crf: int = 17,
    sound_of: Source | None = None,
) -> None:
    """Write RGB images, uint8 [H, W, 3], of `size` (width, height) to the mp4 `output`, each shown at its time.

    `times` are seconds, ascending; the film begins with the first of them. Where they are those of a constant rate, `fps`,
    so is the film's. The sound of another video, if it has any, lies under them, by the same clock.
    Raises ItemError where the film on disk does not hold what was written.
    """
    fps, start, times = Fraction(fps).limit_denominator(1001), times[0], np.array(times) - times[0]
    even = np.arange(len(times)) / float(fps)
    constant = np.abs(times - even).max(initial=0.0) < EVEN
    end = len(times) / float(fps) if constant else float(times[-1] + np.median(np.diff(times)))
    sound = find_sound(sound_of.path, sound_of.start + start, end) if sound_of else None
    with VideoWriter(output, *size, fps, crf=crf, times=None if constant else times.tolist(), sound=sound) as film:
        for rgb in images:
            film.write(rgb)
    check_film(output, even if constant else times, fps if constant else None)
    if sound:
        check_sound(output, sound)


def at_constant_rate(stream: Iterable[Frame], fps: Fraction, end: float) -> Iterator:
    """RGB frames at `fps`, each the one nearest in time, as ffmpeg's fps filter rounds; the last one always stays.

    A frame is due at the tick nearest to its time; of several due at one tick the last is shown, and a frame is
    repeated until the next is due. `end`: seconds at which the last frame leaves the screen.
    """
    shown, tick = None, 0
    for frame in stream:
        due = _nearest(frame.time * fps)
        while shown is not None and tick < due:
            yield shown
            tick += 1
        shown = frame.rgb
    for _ in range(tick, max(_nearest(end * fps), tick + 1)):
        yield shown


def _nearest(ticks) -> int:
    """Rounded half up; times come as floats, whose error must not decide a tie."""
    return floor(Fraction(ticks).limit_denominator(10**6) + Fraction(1, 2))


def _end(source: Source, allow_truncated: bool) -> float:
    """Seconds at which the last frame of a video leaves the screen; of a truncated one, the last that is there.

    Raises ItemError for a video that stands still for hours: its frame would be repeated as long. Where only the declared
    duration says so of the last frame, that is not believed.
    """
    times = frame_times(source)
    hole = np.diff(times).max(initial=0.0)
    if hole > LONGEST_HOLE:
        number = int(np.diff(times).argmax())
        raise ItemError(
            f"{source.path} shows frame {number} for {timedelta(seconds=round(hole))}, from {times[number]:.3f} s on",
            "cut that out of the video, or leave the source out of the film",
        )
    last = float(times[-1])
    if beyond := source.duration - last > LONGEST_HOLE:
        said, shown = (timedelta(seconds=round(seconds)) for seconds in (source.duration, last))
        log("warning", file=str(source.path), reason=f"it says that it lasts {said} and its last frame is at {shown}")
    usual = last + float(1 / source.fps)
    return usual if allow_truncated or beyond or not source.duration else max(source.duration, last + 1e-3)


def _common_size(parts) -> tuple[int, int]:
    sizes = {part: probe(part).size for part in map(Path, parts)}
    size = sizes[Path(parts[0])]
    for part, other in sizes.items():
        if other != size:
            raise ItemError(
                f"{part} is {other[0]}x{other[1]}, the part before it {size[0]}x{size[1]}", "make all parts of one size"
            )
    return size


def check_film(output, times: np.ndarray, fps: Fraction | None) -> None:
    """Raise ItemError unless the film on disk shows its frames at `times` [N], and at the constant rate `fps`, if given."""
    written = probe(output)
    held = frame_times(written)
    late = np.abs(held - times).max(initial=0.0) if len(held) == len(times) else 0.0
    if len(held) != len(times) or late > EVEN or (fps and (written.fps != fps or not written.constant_rate)):
        raise ItemError(
            f"{output} has {len(held)} frames at {written.fps} per second instead of {len(times)} at {fps or 'their times'}",
            "run again; report it if it happens twice",
        )
