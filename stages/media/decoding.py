"""Packets and frames of a stream, damaged or not: in display order, with their indices, on one continuous clock."""

import os
from bisect import insort
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

MAX_BACKWARD = 0.5  # seconds: a clock that jumps back further has restarted, as where `cat` joined two files
BROADCAST = ("mpegts", "mpeg")  # containers whose clock may also jump forward
MAX_FORWARD = 10.0  # seconds: a larger jump is a restart in these containers, and never a gap of lost frames
GUESSING = ("mpeg",)  # containers with few timestamps, where libavformat's guesses are unreliable
RATE_PACKETS = 400  # enough to see a phone's or a screen recorder's varying rate, cheap in a file of any length
SYNC = 0x47  # the first byte of each packet of a transport stream
MAX_HELD = 2  # packets after a damaged one before the clock restarts: the parser delays some


def decoding_threads() -> int:
    """Threads for a decoder: the cores of this process, at most four; more only wait for the conversion to RGB."""
    return min(len(os.sched_getaffinity(0)), 4)


def stores_times(container: str) -> bool:
    """Whether a container, by its name, stores when each frame is shown; AVI stores only the order of decoding."""
    return container != "avi"


def time_base(stream: VideoStream) -> Fraction:
    """Seconds of a tick of the stream's clock; libavformat sets it for every stream of a file."""
    return cast(Fraction, stream.time_base)


def timestamp(packet: av.Packet) -> int:
    """The presentation time of a packet, or its decoding time if the container has none; in the stream's time base."""
    return packet.pts if packet.pts is not None else packet.dts or 0


class Packets:
    """The packets of a stream in stored order, on one clock. Iterating yields (packet, whether it is damaged).

    `ends_early`: reading stopped within a packet, or at an error. `restarts`: how often the clock restarted. `end`: the byte
    at which the last packet ends. `ticks`: presentation times of the first packets, at most RATE_PACKETS, and none after the
    first damage.
    """

    def __init__(self, container: InputContainer, stream: VideoStream):
        self.container, self.stream = container, stream
        self.ends_early, self.restarts, self.end = False, 0, 0
        self.ticks: list[int] = []
        self.damaged = False
        self._shift = 0
        self._expected: int | None = None

    def __iter__(self) -> Iterator[tuple[av.Packet, bool]]:
        for packet, damaged in self._read():
            self.damaged |= damaged
            self.end = max(self.end, (packet.pos or 0) + packet.size)
            if not self.damaged and not packet.is_discard and len(self.ticks) < RATE_PACKETS:
                self.ticks.append(timestamp(packet))
            yield packet, damaged

    def _read(self) -> Iterator[tuple[av.Packet, bool]]:
        held: list[av.Packet] = []  # a damaged packet and the next ones: a file may end there, or another one be appended
        try:
            for packet in self.container.demux(self.stream):
                if not packet.size:
                    continue
                restarted = self._shift_times(packet)
                if held and (restarted or len(held) > MAX_HELD):
                    yield from ((one, one.is_corrupt and not restarted) for one in held)
                    held = []
                if held or packet.is_corrupt:
                    held.append(packet)
                else:
                    yield packet, False
        except av.FFmpegError:
            self.ends_early = True
        if held and held[-1].is_corrupt:
            held.pop()  # it holds only a part of a frame
            self.ends_early = True
        yield from ((one, one.is_corrupt) for one in held)

    def _shift_times(self, packet: av.Packet) -> bool:
        """Shift a packet's times to continue those before it. Returns whether the file's clock restarted with it."""
        restarted, stored = False, packet.dts
        if self.container.format.name.startswith("mov"):
            return False  # after a cut in its edit list come packets of earlier times, from which the first frame is decoded
        if stored is None and packet.is_keyframe:
            stored = packet.pts
        if stored is not None and self._expected is not None:
            ahead = float((stored + self._shift - self._expected) * time_base(self.stream))
            restarted = ahead < -MAX_BACKWARD or (ahead > MAX_FORWARD and self.container.format.name in BROADCAST)
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
    """A decoded frame, its index in the video, and its presentation time in ticks of the stream's time base."""

    index: int
    tick: int
    frame: av.VideoFrame


class Decoder:
    """Iterating yields each frame of a stream, Decoded, in display order.

    Packets before the first keyframe may give no frame, and do not count then. Frames lost to damage after it keep their
    indices and times, which no other frame takes. With `stop_at_damage`, decoding ends at the first damage. `interval` is
    the ticks between frames on a regular grid, None for other streams.

    - `damage`: the ticks of damage. `error`: the decoder's last error. `ends_early`: the stream is cut off.
    - `unfinished`: the decoder kept back frames at the end, which happens only with several threads.
    - `stored`: an iterator over the packets not yet decoded. `clock`: seconds of a tick.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        *,
        threads: int,
        interval: Fraction | None = None,
        stop_at_damage: bool = False,
    ):
        self.interval, self.stop_at_damage, self.threads = interval, stop_at_damage, threads
        self.packets = Packets(container, stream)
        self.stored = iter(self.packets)
        self.clock = float(time_base(stream))
        self.decoder = make_decoder(stream)
        self.decoder.thread_type, self.decoder.thread_count = "AUTO", threads
        self.has_times = stores_times(container.format.name)
        self.guesses = container.format.name in GUESSING
        self.damage: list[int] = []
        self.error = ""
        self.unfinished = False
        self._started = False  # a keyframe was found
        self._pending: list[int] = []  # ticks of the frames that the decoder holds
        self._index, self._length = 0, 1
        self._last: int | None = None

    @property
    def ends_early(self) -> bool:
        return self.packets.ends_early

    def __iter__(self) -> Iterator[Decoded]:
        for packet, damaged in self.stored:
            self._started |= packet.is_keyframe
            if damaged:
                self._note(timestamp(packet))
            if not packet.is_discard:
                insort(self._pending, timestamp(packet))
            try:
                frames = self.decoder.decode(packet)
            except av.FFmpegError as error:
                frames, self.error = [], error.strerror or ""
                self._note(self._pending[0] if self._pending else timestamp(packet))
                if not self.has_times and self._started:
                    self._index += 1
            yield from self._with_indices(frames)
            if self.stop_at_damage and self.damage:
                self.packets.ends_early |= sum(1 for _ in islice(self.stored, MAX_HELD)) < MAX_HELD
                break
        with suppress(av.FFmpegError):
            yield from self._with_indices(self.decoder.decode(None))
        stopped = self.stop_at_damage and self.damage
        self.unfinished = bool(self._pending) and self.has_times and self.threads > 1 and not stopped

    @cached_property
    def _lacks_packets(self) -> bool:
        """Whether a transport stream lacks packets: gaps between its frames are lost frames then, not a varying rate."""
        container, stream = self.packets.container, self.packets.stream
        return container.format.name == "mpegts" and lacks_packets(container.name.removeprefix("file:"), stream.id)

    def _note(self, tick: int) -> None:
        if self._started:
            self.damage.append(tick)

    def _with_indices(self, frames: Iterable[av.VideoFrame]) -> Iterator[Decoded]:
        for frame in frames:
            tick, lost = self._tick(frame), 0
            while self._pending and self._pending[0] <= tick:
                lost += self._pending.pop(0) < tick
            if self.has_times and self._last is not None:
                if tick <= self._last:
                    continue  # out of order, by damage
                if self.interval and (tick - self._last) * self.clock < MAX_FORWARD:
                    lost = max(0, round((tick - self._last) / self.interval) - 1)
                if lost and self.interval and self._lacks_packets:
                    self._note(tick)
                if self.damage:
                    self._index += lost
            if frame.is_corrupt:
                self._note(tick)
            elif not (self.stop_at_damage and self.damage and tick >= self.damage[0]):
                yield Decoded(self._index, tick, frame)
            if not frame.is_corrupt or self._started:
                self._index, self._last = self._index + 1, tick

    def _tick(self, frame: av.VideoFrame) -> int:
        """The presentation time of a frame; the end of the frame before it if the file has none."""
        last, length = self._last, self._length
        self._length = frame.duration or length
        if last is None:
            return frame.pts or 0
        end = last + length
        if frame.pts is None or not self.has_times:
            return end
        if self.guesses and abs(frame.pts - end) * self.clock < MAX_BACKWARD:
            return end
        return frame.pts if frame.pts > last or self.damage else last + 1


def lacks_packets(path: str, pid: int) -> bool:
    """Whether packets are missing or damaged in a transport stream, by the continuity counters of one of its streams.

    A packet's header has four bytes (ISO/IEC 13818-1, 2.4.3.2): the sync byte, 13 bits of the stream's PID, and, at the end,
    a bit for "has payload" and the counter of 4 bits. The counter rises by 1, or stays the same for a repeated packet.
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


def make_decoder(stream: VideoStream) -> Any:
    """The stream's decoder, or libvpx for WebM with transparency, which the default decoder ignores."""
    other = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
    if not other or not has_hidden_alpha(stream):
        return stream.codec_context
    decoder = av.CodecContext.create(other, "r")
    decoder.extradata = stream.codec_context.extradata
    return decoder


def has_hidden_alpha(stream: VideoStream) -> bool:
    """Whether the stream has WebM's separate alpha channel, which only libvpx decodes."""
    return stream.metadata.get("alpha_mode") == "1"
