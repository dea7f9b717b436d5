"""Packets and frames of a stream, damaged or not: in display order, on a clock that runs on, each with its place."""

import os
from bisect import insort
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice

import av
import numpy as np

# A clock that jumps back by as many seconds has started anew, as where two files were joined by `cat`.
BACK = 0.5
BROADCAST = ("mpegts", "mpeg")  # containers whose clock may jump ahead too
AHEAD = 10.0  # seconds: by more than that; and no gap that is longer is one of lost frames
GUESSING = ("mpeg",)  # containers with few stored times, between which libavformat's guesses are no good
RATE_PACKETS = 400  # enough to see a phone's or a screen recorder's varying rate, cheap in a file of any length
SYNC = 0x47  # the first byte of each packet of a transport stream
BEHIND = 2  # packets that may follow a damaged one before the clock starts anew: the parser holds some back


def decoding_threads() -> int:
    """How many threads a decoder gets: the cores of this process, but more than four only wait for the conversion to RGB."""
    return min(len(os.sched_getaffinity(0)), 4)


def stores_times(container: str) -> bool:
    """Whether a container, by its name, says when each frame is shown; AVI only says in which order they are decoded."""
    return container != "avi"


def tick_of(packet) -> int:
    """When a packet's frame is shown, or where the container does not say, is decoded; in the stream's time base."""
    return packet.pts if packet.pts is not None else packet.dts or 0


class Packets:
    """The packets of a stream in stored order, on one clock. Iterating yields (packet, whether it is damaged).

    `ends_early`: reading broke off within a packet, or by an error. `restarts`: how often the clock started anew. `end`:
    where in the file the last packet ends. `ticks`: when the frames of the first packets are shown, as many as RATE_PACKETS,
    and none behind the first damage.
    """

    def __init__(self, container, stream):
        self.container, self.stream = container, stream
        self.ends_early, self.restarts, self.end, self.ticks = False, 0, 0, []
        self.damaged = False
        self._shift, self._expected = 0, None

    def __iter__(self) -> Iterator[tuple[av.Packet, bool]]:
        for packet, damaged in self._read():
            self.damaged |= damaged
            self.end = max(self.end, (packet.pos or 0) + packet.size)
            if not self.damaged and not packet.is_discard and len(self.ticks) < RATE_PACKETS:
                self.ticks.append(tick_of(packet))
            yield packet, damaged

    def _read(self) -> Iterator[tuple[av.Packet, bool]]:
        held = []  # a damaged packet and what follows: that may be the end of a file, or of one that another was appended to
        try:
            for packet in self.container.demux(self.stream):
                if not packet.size:
                    continue
                restarted = self._put_on_clock(packet)
                if held and (restarted or len(held) > BEHIND):
                    yield from ((one, one.is_corrupt and not restarted) for one in held)
                    held = []
                if held or packet.is_corrupt:
                    held.append(packet)
                else:
                    yield packet, False
        except av.FFmpegError:
            self.ends_early = True
        if held and held[-1].is_corrupt:
            held.pop()  # a part of a frame is none
            self.ends_early = True
        yield from ((one, one.is_corrupt) for one in held)

    def _put_on_clock(self, packet) -> bool:
        """Shift a packet's times to follow those before it; whether the file's clock started anew with it."""
        restarted, stored = False, packet.dts
        if self.container.format.name.startswith("mov"):
            return False  # each cut of an edit list brings packets of earlier times, to decode its first frame from
        if stored is None and packet.is_keyframe:
            stored = packet.pts
        if stored is not None and self._expected is not None:
            ahead = float((stored + self._shift - self._expected) * self.stream.time_base)
            restarted = ahead < -BACK or ahead > AHEAD and self.container.format.name in BROADCAST
            if restarted:
                self._shift = self._expected - stored
                self.restarts += 1
        if self._shift:
            packet.dts = packet.dts + self._shift if packet.dts is not None else None
            packet.pts = packet.pts + self._shift if packet.pts is not None else None
        if packet.dts is not None:
            self._expected = packet.dts + (packet.duration or 0)
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
    `interval` is ticks from one frame to the next where they lie on a grid, else None.

    `damage` lists the ticks where something was damaged, `error` is what the decoder said of it last, `ends_early` says that
    the stream broke off, and `unfinished` that frames at the end were kept back, which happens on several threads only.
    `stored` gives the packets that were not decoded yet, `clock` is seconds of a tick.
    """

    def __init__(self, container, stream, *, threads: int, interval: Fraction | None = None, stop_at_damage: bool = False):
        self.interval, self.stop_at_damage, self.threads = interval, stop_at_damage, threads
        self.packets = Packets(container, stream)
        self.stored = iter(self.packets)
        self.clock = float(stream.time_base)
        self.decoder = decoder_of(stream)
        self.decoder.thread_type, self.decoder.thread_count = "AUTO", threads
        self.has_times = stores_times(container.format.name)
        self.guesses = container.format.name in GUESSING
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
                self.packets.ends_early |= sum(1 for _ in islice(self.stored, BEHIND)) < BEHIND
                break
        with suppress(av.FFmpegError):
            yield from self._numbered(self.decoder.decode(None))
        stopped = self.stop_at_damage and self.damage
        self.unfinished = bool(self._waiting) and self.has_times and self.threads > 1 and not stopped

    @cached_property
    def _lacks_packets(self) -> bool:
        """Whether a transport stream lacks packets: then frames that are missing in it are lost, not left out on purpose."""
        container, stream = self.packets.container, self.packets.stream
        return container.format.name == "mpegts" and lacks_packets(container.name.removeprefix("file:"), stream.id)

    def _note(self, tick: int) -> None:
        if self._begun:
            self.damage.append(tick)

    def _numbered(self, frames) -> Iterator[Decoded]:
        for frame in frames:
            tick, lost = self._tick(frame), 0
            while self._waiting and self._waiting[0] <= tick:
                lost += self._waiting.pop(0) < tick
            if self.has_times and self._last is not None:
                if tick <= self._last:
                    continue  # come too late, as damage can have it
                if self.interval and (tick - self._last) * self.clock < AHEAD:
                    lost = max(0, round((tick - self._last) / self.interval) - 1)
                if lost and self.interval and self._lacks_packets:
                    self._note(tick)
                if self.damage:
                    self._index += lost
            if frame.is_corrupt:
                self._note(tick)
            elif not (self.stop_at_damage and self.damage and tick >= self.damage[0]):
                yield Decoded(self._index, tick, frame)
            if not frame.is_corrupt or self._begun:
                self._index, self._last = self._index + 1, tick

    def _tick(self, frame) -> int:
        """When a frame is shown; where the file does not say, when the one before it ends."""
        end = None if self._last is None else self._last + self._length
        self._length = frame.duration or self._length
        if end is None:
            return frame.pts or 0
        if frame.pts is None or not self.has_times:
            return end
        if self.guesses and abs(frame.pts - end) * self.clock < BACK:
            return end
        return frame.pts if frame.pts > self._last or self.damage else self._last + 1


def lacks_packets(path: str, pid: int) -> bool:
    """Whether packets are missing, or damaged, in a transport stream: by the counters of one of its streams.

    Of each packet's four bytes (ISO/IEC 13818-1, 2.4.3.2), the first is always the same, then come 13 bits of the stream's
    number, and in the end a bit for "has content" and a counter of 4 bits, which goes on, or stays if a packet is repeated.
    """
    last = np.array([], np.uint8)
    with open(path, "rb") as file:
        head = file.read(1024)
        layouts = [(size, at) for size, at in ((188, 0), (192, 4), (204, 0)) if set(head[at::size]) == {SYNC}]
        if not layouts:
            return True
        size, at = layouts[0]
        file.seek(0)
        while chunk := file.read(size << 16):
            headers = np.frombuffer(chunk, np.uint8)[: len(chunk) // size * size].reshape(-1, size)[:, at : at + 4]
            ours = (headers[:, 1] & 0x1F == pid >> 8) & (headers[:, 2] == pid & 0xFF) & (headers[:, 3] & 0x10 > 0)
            counters = np.concatenate([last, headers[ours, 3] & 15])
            if (headers[:, 0] != SYNC).any() or (np.diff(counters) & 15 > 1).any():
                return True
            last = counters[-1:]
    return False


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
