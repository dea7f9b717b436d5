"""Sound of a video: the track that can be heard, and whether a film has what its source has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np

from stages.media.probe import open_video
from stages.runtime.errors import ItemError
from stages.runtime.log import log

TRIED_PACKETS = 200  # of a track, before it counts as one that cannot be decoded
MOST_CHANNELS = 8  # that AAC has layouts for
AUDIBLE, SILENT = 10 ** (-50 / 20), 10 ** (-60 / 20)  # peaks, with full scale at 1
SHORTER = 0.25  # seconds by which the film's sound may be shorter: AAC's frames and delay


@dataclass(frozen=True)
class Sound:
    """Sound of a file, to lie under a film's beginning: `seconds` of its audio track `track` (counted from 0) from `start`,
    seconds on the file's own clock, on; `channels` are those of the track."""

    path: Path
    track: int
    channels: int
    start: float
    seconds: float


def find_sound(path: Path, start: float, seconds: float) -> Sound | None:
    """The first audio track of a video that can be decoded, the default one before the others.

    A track that cannot be decoded gives way to the next, with a warning in the log. None where none is left, or the file has
    no audio.
    """
    with open_video(path) as (container, _):
        tracks = list(container.streams.audio)
    default = av.stream.Disposition.default
    for stream in sorted(tracks, key=lambda stream: not stream.disposition & default):
        number = tracks.index(stream)
        if frame := next(islice(_decoded(path, number, TRIED_PACKETS), 1), None):
            return Sound(Path(path), number, frame.layout.nb_channels, start, seconds)
        log("warning", reason=f"audio track {number} of {path} cannot be decoded", remedy="the next one is taken, or none")
    return None


def check_sound(film: Path, sound: Sound) -> None:
    """Raise ItemError unless a film has the sound that it was given: as long as in the source, and not silent where that is
    not."""
    expected, written = _heard(sound.path, sound.track, sound.start), _heard(film, 0, 0.0)
    length, loudest = expected.until(sound.seconds)
    film_length, film_loudest = written.until(sound.seconds)
    if film_length < length - SHORTER or (loudest > AUDIBLE and film_loudest < SILENT):
        raise ItemError(
            f"{film} has {film_length:.2f} s of sound with a peak of {film_loudest:.3f} instead of {length:.2f} s with "
            f"{loudest:.3f} of {sound.path}",
            "leave the sound out with --no-keep-audio, or encode it again",
        )


@dataclass(frozen=True, eq=False)
class _Heard:
    """A track in short pieces: seconds at which each ends, float64 [N], and its highest sample, float64 [N]."""

    ends: np.ndarray
    peaks: np.ndarray

    def until(self, seconds: float) -> tuple[float, float]:
        """Seconds that the track lasts, and its highest sample, up to a time."""
        before = self.ends[self.ends <= seconds + SHORTER]
        return min(float(before.max(initial=0.0)), seconds), float(self.peaks[: len(before)].max(initial=0.0))


def _heard(path: Path, track: int, start: float) -> _Heard:
    resampler = av.AudioResampler(format="flt")
    ends, peaks = [], []
    for frame in _decoded(path, track):
        time = 0.0 if frame.pts is None else float(frame.pts * frame.time_base) - start
        end = time + frame.samples / frame.sample_rate
        if end > 0:
            ends.append(end)
            peaks.append(max(float(np.abs(part.to_ndarray()).max(initial=0.0)) for part in resampler.resample(frame)))
    return _Heard(np.array(ends), np.array(peaks))


def _decoded(path: Path, track: int, packets: int | None = None) -> Iterator[av.AudioFrame]:
    """The frames of an audio track, or of its first packets; what is damaged is passed over."""
    with open_video(path) as (container, _):
        stream = container.streams.audio[track]
        if stream.codec_context is None:  # no decoder knows it
            return
        demuxed = container.demux(stream)
        with suppress(av.FFmpegError):  # in the container itself: what follows cannot be found
            for packet in islice(demuxed, packets):
                with suppress(av.FFmpegError):
                    yield from stream.decode(packet)
