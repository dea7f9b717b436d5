"""Packets and frames of a stream, damaged or not: in display order, on a clock that runs on, each with its place."""

import os
from bisect import insort
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import av

# Containers whose clock may start anew within the file, as where two files were joined by `cat`; as ffmpeg treats them.
RESTARTING = ("mpegts", "mpeg", "ogg")
RATE_PACKETS = 400  # enough to see a phone's or a screen recorder's varying rate, cheap in a file of any length
BACK, AHEAD = 0.1, 10.0  # seconds: a jump of their clock by more than that is a new start


def available_threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def decoding_threads() -> int:
    """How many threads a decoder gets: more than four wait for the conversion to RGB, and hold a frame each."""
    return min(available_threads(), 4)


def stores_times(container: str) -> bool:
    """Whether a container, by its name, says when each frame is shown; AVI only says in which order they are decoded."""
    return container != "avi"


def tick_of(packet) -> int:
    """When a packet's frame is shown, or where the container does not say, is decoded; in the stream's time base."""
    return packet.pts if packet.pts is not None else packet.dts or 0


class Packets:
    """The packets of a stream in stored order, on one clock. Iterating yields (packet, whether it is damaged).

    `ends_early`: reading broke off within a packet, or by an error. `restarts`: how often the clock started anew.
    `ticks`: when the frames of the first packets are shown, as many as RATE_PACKETS, and none behind the first damage.
    """

    def __init__(self, container, stream):
        self.container, self.stream = container, stream
        self.ends_early, self.restarts, self.ticks = False, 0, []
        self._shift, self._expected = 0, None
        self._sound = True

    def __iter__(self) -> Iterator[tuple[av.Packet, bool]]:
        for packet, damaged in self._read():
            self._sound &= not damaged
            if self._sound and not packet.is_discard and len(self.ticks) < RATE_PACKETS:
                self.ticks.append(tick_of(packet))
            yield packet, damaged

    def _read(self) -> Iterator[tuple[av.Packet, bool]]:
        held = None  # a damaged packet: it may be the last one, or the last one of a file that another was appended to
        try:
            for packet in self.container.demux(self.stream):
                if not packet.size:
                    continue
                restarted = self._put_on_clock(packet)
                if held is not None:
                    yield held, not restarted
                held = packet if packet.is_corrupt else None
                if held is None:
                    yield packet, False
        except av.FFmpegError:
            self.ends_early = True
        self.ends_early |= held is not None

    def _put_on_clock(self, packet) -> bool:
        """Shift a packet's times to follow those before it; whether the file's clock started anew with it."""
        dts = packet.dts
        if dts is None or self.container.format.name not in RESTARTING:
            return False
        ahead = float((dts + self._shift - self._expected) * self.stream.time_base) if self._expected is not None else 0.0
        restarted = not -BACK <= ahead <= AHEAD
        if restarted:
            self._shift = self._expected - dts
            self.restarts += 1
        if self._shift:
            packet.dts = dts + self._shift
            packet.pts = packet.pts + self._shift if packet.pts is not None else None
        self._expected = dts + self._shift + (packet.duration or 0)
        return restarted


@dataclass(frozen=True, eq=False)
class Decoded:
    """A frame as the decoder gave it, its place among the frames of the whole video, and when it is shown, in ticks."""

    index: int
    tick: int
    frame: av.VideoFrame


class Decoder:
    """Iterating yields each frame of a stream, Decoded, in display order.

    Packets before the first keyframe may give no frame and then do not count. What is damaged after it leaves out frames,
    whose places and times stay free. With `stop_at_damage`, the good frames before the first damage are the last ones.
    `interval` is ticks from one frame to the next where the rate is constant, else None.

    `damage` lists the ticks where something was damaged, `error` is what the decoder said of it last, `ends_early` says that
    the stream broke off, and `unfinished` that frames at the end were kept back, which happens on several threads only.
    `stored` gives the packets that were not decoded yet.
    """

    def __init__(self, container, stream, *, threads: int, interval: Fraction | None = None, stop_at_damage: bool = False):
        self.stream, self.interval, self.stop_at_damage, self.threads = stream, interval, stop_at_damage, threads
        self.packets = Packets(container, stream)
        self.stored = iter(self.packets)
        self.decoder = decoder_of(stream)
        self.decoder.thread_type, self.decoder.thread_count = "AUTO", threads
        self.has_times = stores_times(container.format.name)
        self.damage: list[int] = []
        self.error = ""
        self.unfinished = False
        self._begun = False  # a keyframe was met
        self._waiting: list[int] = []  # ticks of the frames that the decoder holds
        self._index, self._last, self._length = 0, None, 1

    @property
    def ends_early(self) -> bool:
        return self.packets.ends_early

    def __iter__(self) -> Iterator[Decoded]:
        for packet, damaged in self.stored:
            self._begun |= packet.is_keyframe
            if damaged:
                self._note(tick_of(packet))
            if not packet.is_discard:
                insort(self._waiting, tick_of(packet))
            try:
                frames = self.decoder.decode(packet)
            except av.FFmpegError as error:
                frames, self.error = (), error.strerror
                self._note(self._waiting[0] if self._waiting else tick_of(packet))
                if not self.has_times and self._begun:
                    self._index += 1
            yield from self._numbered(frames)
            if self.stop_at_damage and self.damage:
                break
        with suppress(av.FFmpegError):
            yield from self._numbered(self.decoder.decode(None))
        stopped = self.stop_at_damage and self.damage
        self.unfinished = bool(self._waiting) and self.has_times and self.threads > 1 and not stopped

    def _note(self, tick: int) -> None:
        if self._begun:
            self.damage.append(tick)

    def _numbered(self, frames) -> Iterator[Decoded]:
        for frame in frames:
            tick, passed = self._tick(frame), 0
            while self._waiting and self._waiting[0] <= tick:
                passed += self._waiting.pop(0) < tick
            if self.damage and self.has_times and self._last is not None:
                lost = round((tick - self._last) / self.interval) - 1 if self.interval else passed
                self._index += max(0, lost)
            if frame.is_corrupt:
                self._note(tick)
            elif not (self.stop_at_damage and self.damage and tick >= self.damage[0]):
                yield Decoded(self._index, tick, frame)
            if not frame.is_corrupt or self._begun:
                self._index, self._last = self._index + 1, tick

    def _tick(self, frame) -> int:
        """When a frame is shown; after the one before it, whatever the file says."""
        self._length = frame.duration or self._length
        if frame.pts is not None and (self._last is None or frame.pts > self._last):
            return frame.pts
        return 0 if self._last is None else self._last + max(1, round(self.interval or self._length))


def decoder_of(stream):
    """The stream's decoder; where it would leave out the transparency of WebM, another one."""
    other = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if not other or not has_hidden_alpha(stream):
        return stream.codec_context
    decoder = av.CodecContext.create(other, "r")
    decoder.extradata = stream.codec_context.extradata
    return decoder


def has_hidden_alpha(stream) -> bool:
    """Whether transparency lies beside the picture, where only libvpx looks for it."""
    return stream.metadata.get("alpha_mode") == "1"
