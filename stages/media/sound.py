"""Sound of a video: selection of its audio track, and a check that a written video has the same sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import cast

import av
import numpy as np

from stages.media.decoding import MAX_BACKWARD
from stages.media.probe import open_video
from stages.runtime.errors import ItemError
from stages.runtime.log import log

TRIED_PACKETS = 200  # of a track, before it counts as undecodable
MAX_CHANNELS = 8  # in AAC's layouts
FROM_SIDE, FROM_CENTRE = 1.0, 0.7  # weights of a channel in a stereo mix
AUDIBLE, SILENT = 10 ** (-50 / 20), 10 ** (-60 / 20)  # peaks, with full scale at 1
TOLERANCE = 0.25  # seconds by which the sound may be shorter than its source: AAC's frames and delay


@dataclass(frozen=True)
class Sound:
    """A part of a file's sound, to be written from the start of a video.

    It is `seconds` long and begins at `start`, in seconds on the file's own clock. `track` is the index of the audio track.
    `pan` has the arguments of ffmpeg's pan filter that convert its channels to a layout of AAC, "" if they are in one.
    `levels` are the track's levels, for `check_sound`.
    """

    path: Path
    track: int
    start: float
    seconds: float
    pan: str
    levels: TrackLevels = field(compare=False)


def find_sound(path: Path, start: float, seconds: float) -> Sound | None:
    """The first usable audio track of a video, the default track before the others; None if there is none.

    Tracks that cannot be decoded, or hold numbers that are not finite, are skipped with a warning in the log. Tracks that
    begin after `start` + `seconds` are skipped without one.
    """
    with open_video(path) as (container, _):
        tracks = list(container.streams.audio)
    default = av.stream.Disposition.default
    for stream in sorted(tracks, key=lambda stream: not stream.disposition & default):
        number = tracks.index(stream)
        frame = next(Track(path, number, TRIED_PACKETS).frames(), None)
        if frame is None:
            warn_of_track(path, number, "cannot be decoded")
        elif _time(frame) < start + seconds:
            levels = measure_track(path, number, start)
            if np.isfinite(levels.peaks).all():
                return Sound(Path(path), number, start, seconds, pan_for_aac(frame.layout), levels)
            warn_of_track(path, number, "has numbers that are infinite or NaN")
    return None


def warn_of_track(path: Path, number: int, fault: str) -> None:
    log("warning", reason=f"audio track {number} of {path} {fault}", remedy="the next track is used, if there is one")


def pan_for_aac(layout: av.AudioLayout) -> str:
    """Arguments of ffmpeg's pan filter that convert channels to a layout of AAC; empty if they are in one.

    Up to eight channels without positions become ffmpeg's default layout of that many channels. All other layouts are mixed
    to stereo: each channel to the side in its name, and channels without names to the left and right alternately.
    """
    names = [channel.name for channel in layout.channels]
    encoder = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 48_000, "fltp", layout
    with suppress(av.FFmpegError, ValueError):
        encoder.open()
        return ""
    if len(names) <= MAX_CHANNELS and set(names) == {"NONE"}:
        return "|".join((f"{len(names)}c", *(f"c{n}<c{n}" for n in range(len(names)))))
    return f"stereo|FL<{_side(names, 'L')}|FR<{_side(names, 'R')}"


def _side(names: list[str], side: str) -> str:
    """The channels of a side, "L" or "R", and their weights, in the syntax of ffmpeg's pan filter."""
    terms = []
    for number, name in enumerate(names):
        sides = {"NONE": "LR"[number % 2]}.get(name, "".join(s for s in "LR" if s in name.replace("LFE", "")))
        if side in sides:
            terms.append(f"{FROM_SIDE}*c{number}")
        elif not sides:
            terms.append(f"{FROM_CENTRE}*c{number}")
    return "+".join(terms)


def check_sound(film: Path, sound: Sound) -> None:
    """Raise ItemError unless a video has its sound: as long as in the source, and silent only if that is.

    Decoders treat damaged sound differently: for a damaged source a difference is only a warning in the log.
    """
    expected, written = sound.levels, measure_track(film, 0, 0.0)
    if expected.restarts:
        log("warning", reason=f"the clock of {sound.path} restarts: only the sound of its first part is written")
    length, peak = expected.until(sound.seconds)
    written_length, written_peak = written.until(sound.seconds)
    if written_length >= length - TOLERANCE and (peak <= AUDIBLE or written_peak >= SILENT):
        return
    reason = (
        f"{film} has {written_length:.2f} s of sound with a peak of {written_peak:.3f} instead of {length:.2f} s with "
        f"{peak:.3f} of {sound.path}"
    )
    if not expected.damaged:
        raise ItemError(reason, "leave the sound out with --no-keep-audio, or encode it again")
    log("warning", reason=f"{reason}, which is damaged")


@dataclass(frozen=True, eq=False)
class TrackLevels:
    """Levels of a track by frames: `ends`, seconds at which each ends, float64 [N], and `peaks`, float64 [N].

    `damaged`: a part of it could not be decoded. `restarts`: times jump back, as where `cat` joined two files.
    """

    ends: np.ndarray
    peaks: np.ndarray
    damaged: bool
    restarts: bool

    def until(self, seconds: float) -> tuple[float, float]:
        """Length of the track in seconds, and its peak, up to a time."""
        before = self.ends[self.ends <= seconds + TOLERANCE]
        return min(float(before.max(initial=0.0)), seconds), float(self.peaks[: len(before)].max(initial=0.0))


def measure_track(path: Path, track: int, start: float) -> TrackLevels:
    """Decode a track from `start` on, seconds on the file's own clock, and measure its levels."""
    decoder = Track(path, track)
    ends: list[float] = []
    peaks: list[float] = []
    for frame in decoder.frames():
        end = _time(frame) - start + frame.samples / frame.sample_rate
        if end > 0:
            ends.append(end)
            peaks.append(_peak(frame))
    return TrackLevels(np.array(ends), np.array(peaks), decoder.damaged, bool((np.diff(ends) < -MAX_BACKWARD).any()))


def _time(frame: av.AudioFrame) -> float:
    """Seconds at which a frame begins, on the file's own clock."""
    return 0.0 if frame.pts is None else float(frame.pts * cast(Fraction, frame.time_base))


def _peak(frame: av.AudioFrame) -> float:
    """The highest absolute sample of a frame, with full scale at 1."""
    parts = av.AudioResampler(format="flt").resample(frame)
    return max((float(np.abs(part.to_ndarray()).max(initial=0.0)) for part in parts), default=0.0)


class Track:
    """An audio track of a file, or its first `packets`. Damaged packets are skipped, and set `damaged`."""

    def __init__(self, path: Path, number: int, packets: int | None = None):
        self.path, self.number, self.packets = path, number, packets
        self.damaged = False

    def frames(self) -> Iterator[av.AudioFrame]:
        """Yield the decoded frames in stored order; none if the file has no such track, or there is no decoder for it."""
        with open_video(self.path) as (container, _):
            if self.number >= len(container.streams.audio):
                return
            stream = container.streams.audio[self.number]
            if stream.codec_context is None:
                return
            try:
                for packet in islice(container.demux(stream), self.packets):
                    yield from self._decode(stream, packet)
            except av.FFmpegError:  # in the container itself: nothing after it can be read
                self.damaged = True

    def _decode(self, stream, packet) -> list[av.AudioFrame]:
        try:
            return stream.decode(packet)
        except av.FFmpegError:
            self.damaged = True
            return []
