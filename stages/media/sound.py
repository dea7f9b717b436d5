"""Sound of a video: the track that can be heard, and whether a film has what its source has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import av
import numpy as np

from stages.media.decoding import BACK
from stages.media.probe import open_video
from stages.runtime.errors import ItemError
from stages.runtime.log import log

TRIED_PACKETS = 200  # of a track, before it counts as one that cannot be decoded
MOST_CHANNELS = 8  # that AAC has layouts for
FROM_SIDE, FROM_CENTRE = 1.0, 0.7  # shares of a channel in the two of stereo
AUDIBLE, SILENT = 10 ** (-50 / 20), 10 ** (-60 / 20)  # peaks, with full scale at 1
SHORTER = 0.25  # seconds by which the film's sound may be shorter: AAC's frames and delay


@dataclass(frozen=True)
class Sound:
    """Sound of a file, to lie under a film's beginning: `seconds` of its audio track `track` (counted from 0) from `start`,
    seconds on the file's own clock, on. `pan` has the arguments of ffmpeg's filter of this name that bring its channels into
    a layout that AAC has, "" where they are in one. `heard` is the track itself, as a film with it has to sound."""

    path: Path
    track: int
    start: float
    seconds: float
    pan: str
    heard: Heard = field(compare=False)


def find_sound(path: Path, start: float, seconds: float) -> Sound | None:
    """The first audio track of a video that can be decoded, the default one before the others.

    A track that cannot be decoded, or holds numbers that are not finite, gives way to the next, with a warning in the log,
    and one that begins after those seconds without. None where none is left, or the file has no audio.
    """
    with open_video(path) as (container, _):
        tracks = list(container.streams.audio)
    default = av.stream.Disposition.default
    for stream in sorted(tracks, key=lambda stream: not stream.disposition & default):
        number = tracks.index(stream)
        frame = next(Track(path, number, TRIED_PACKETS).frames(), None)
        if frame is None:
            refuse_track(path, number, "cannot be decoded")
        elif _time(frame) < start + seconds:
            heard = listen(path, number, start)
            if np.isfinite(heard.peaks).all():
                return Sound(Path(path), number, start, seconds, pan_for_aac(frame.layout), heard)
            refuse_track(path, number, "has numbers that are infinite or NaN")
    return None


def refuse_track(path: Path, number: int, fault: str) -> None:
    log("warning", reason=f"audio track {number} of {path} {fault}", remedy="the next one is taken, or none")


def pan_for_aac(layout: av.AudioLayout) -> str:
    """Arguments of ffmpeg's pan filter by which channels come into a layout that AAC has; empty where they are in one.

    Up to eight channels without positions are treated as ffmpeg's default layout of that many channels. All other layouts
    are mixed to stereo: each channel to the side in its name, and channels without names to the left and right alternately.
    """
    names = [channel.name for channel in layout.channels]
    encoder = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 48_000, "fltp", layout
    with suppress(av.FFmpegError, ValueError):
        encoder.open()
        return ""
    if len(names) <= MOST_CHANNELS and set(names) == {"NONE"}:
        return "|".join((f"{len(names)}c", *(f"c{n}<c{n}" for n in range(len(names)))))
    return f"stereo|FL<{_side(names, 'L')}|FR<{_side(names, 'R')}"


def _side(names: list[str], side: str) -> str:
    """The channels that are heard on a side, "L" or "R", and their shares, as ffmpeg's pan filter takes them."""
    terms = []
    for number, name in enumerate(names):
        sides = {"NONE": "LR"[number % 2]}.get(name, "".join(s for s in "LR" if s in name.replace("LFE", "")))
        if side in sides:
            terms.append(f"{FROM_SIDE}*c{number}")
        elif not sides:
            terms.append(f"{FROM_CENTRE}*c{number}")
    return "+".join(terms)


def check_sound(film: Path, sound: Sound) -> None:
    """Raise ItemError unless a film has the sound that it was given: as long as in the source, and not silent where that is
    not. Of a source whose sound is damaged, decoders make different things: then the log has it as a warning."""
    expected, written = sound.heard, listen(film, 0, 0.0)
    if expected.starts_anew:
        log("warning", reason=f"the clock of {sound.path} starts anew: the film has the sound of its first part alone")
    length, loudest = expected.until(sound.seconds)
    film_length, film_loudest = written.until(sound.seconds)
    if film_length >= length - SHORTER and (loudest <= AUDIBLE or film_loudest >= SILENT):
        return
    reason = (
        f"{film} has {film_length:.2f} s of sound with a peak of {film_loudest:.3f} instead of {length:.2f} s with "
        f"{loudest:.3f} of {sound.path}"
    )
    if not expected.damaged:
        raise ItemError(reason, "leave the sound out with --no-keep-audio, or encode it again")
    log("warning", reason=f"{reason}, which is damaged")


@dataclass(frozen=True, eq=False)
class Heard:
    """A track in short pieces: seconds at which each ends, float64 [N], and its highest sample, float64 [N].

    `damaged`: some of it could not be decoded. `starts_anew`: times jump back, as where two files were joined by `cat`.
    """

    ends: np.ndarray
    peaks: np.ndarray
    damaged: bool
    starts_anew: bool

    def until(self, seconds: float) -> tuple[float, float]:
        """Seconds that the track lasts, and its highest sample, up to a time."""
        before = self.ends[self.ends <= seconds + SHORTER]
        return min(float(before.max(initial=0.0)), seconds), float(self.peaks[: len(before)].max(initial=0.0))


def listen(path: Path, track: int, start: float) -> Heard:
    """A track from `start` on, seconds on the file's own clock."""
    decoder, ends, peaks = Track(path, track), [], []
    for frame in decoder.frames():
        end = _time(frame) - start + frame.samples / frame.sample_rate
        if end > 0:
            ends.append(end)
            peaks.append(_peak(frame))
    return Heard(np.array(ends), np.array(peaks), decoder.damaged, bool((np.diff(ends) < -BACK).any()))


def _time(frame: av.AudioFrame) -> float:
    """Seconds at which a frame begins, on the file's own clock."""
    return 0.0 if frame.pts is None else float(frame.pts * frame.time_base)


def _peak(frame: av.AudioFrame) -> float:
    """The highest sample of a frame, with full scale at 1."""
    parts = av.AudioResampler(format="flt").resample(frame)
    return max((float(np.abs(part.to_ndarray()).max(initial=0.0)) for part in parts), default=0.0)


class Track:
    """An audio track of a file, or its first packets, decoded; what is damaged is passed over, and `damaged` says so."""

    def __init__(self, path: Path, number: int, packets: int | None = None):
        self.path, self.number, self.packets = path, number, packets
        self.damaged = False

    def frames(self) -> Iterator[av.AudioFrame]:
        """The frames in stored order; none where the file has no such track, or no decoder knows it."""
        with open_video(self.path) as (container, _):
            if self.number >= len(container.streams.audio):
                return
            stream = container.streams.audio[self.number]
            if stream.codec_context is None:
                return
            try:
                for packet in islice(container.demux(stream), self.packets):
                    yield from self._decoded(stream, packet)
            except av.FFmpegError:  # in the container itself: what follows cannot be found
                self.damaged = True

    def _decoded(self, stream, packet) -> list[av.AudioFrame]:
        try:
            return stream.decode(packet)
        except av.FFmpegError:
            self.damaged = True
            return []
