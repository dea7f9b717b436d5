"""Selection of frames of a video: the last ones, the first ones, the midpoints of equal segments, keyframes by motion."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from stages.media.decoding import decoding_threads, timestamp
from stages.media.pixels import converter
from stages.media.probe import Source, Timeline, decode_times, frame_times, open_video, packet_timeline, probe
from stages.media.read import Frame, ends_early, frames
from stages.runtime.errors import ItemError, UsageError

MIN_SEEK_DURATION = 20.0  # seconds: shorter videos are read from the start, which is as fast

Choice = Callable[
    [np.ndarray], Sequence[int]
]  # from the times of all frames, in seconds, to ascending indices, which may repeat


def first(path: Path | str, count: int = 1, *, allow_truncated: bool = False) -> list[Frame]:
    """The first `count` frames (fewer if the video is shorter). Raises as `last`, for damage before them."""
    _check_count(count)
    return list(islice(frames(probe(path), allow_damage=allow_truncated), count))


def last(path: Path | str, count: int = 1, *, allow_truncated: bool = False) -> list[Frame]:
    """The last `count` frames in display order (fewer if the video is shorter); only these are held in memory.

    A long video is read from near its end. Raises UsageError for a count below 1, Damaged or Truncated for a damaged video;
    with `allow_truncated` the last good frames are returned instead.
    """
    _check_count(count)
    source = probe(path)
    if source.duration > MIN_SEEK_DURATION:
        if (
            tail := _seek_frames(source, lambda times: range(max(0, len(times) - count), len(times)), accurate=True)
        ) is not None:
            return tail
    return list(deque(frames(source, allow_damage=allow_truncated), maxlen=count))


def midpoints(path: Path | str, count: int, *, allow_truncated: bool = False) -> list[Frame]:
    """The frames at the midpoints of `count` equal segments; frames of a short video repeat. Raises as `last`."""
    source = probe(path)
    return _read_frames(source, lambda times: midpoint_indices(times, count, source.constant_rate), allow_truncated)


def evenly(path: Path | str, count: int) -> list[Frame]:
    """`count` frames spread evenly by index, whatever their times. Raises as `last`."""

    def indices(times: np.ndarray) -> Sequence[int]:
        return range(count) if len(times) == count else midpoint_indices(times, count)

    return _read_frames(probe(path), indices, False)


def sample(path: Path | str, n_segments: int, include_last: bool = False) -> list[Frame]:
    """Frames as input for a model: the midpoints of `n_segments` equal segments, then, with `include_last`, the last frame.

    Faster than `midpoints`: it uses swscale's default conversion, and decodes only the parts of the video that are needed. A
    damaged video is sampled over its good frames.
    """
    source = probe(path)

    def indices(times: np.ndarray) -> list[int]:
        middles = midpoint_indices(times, n_segments, source.constant_rate)
        return [*middles, len(times) - 1] if include_last else middles

    return _sampled(source, indices)


def ending(path: Path | str, count: int, seconds: float = 1.0) -> list[Frame]:
    """`count` frames of the last `seconds`, evenly by index, the last of them the very last frame; read as by `sample`.

    Frames of a short video repeat.
    """

    def indices(times: np.ndarray) -> list[int]:
        start = int(np.searchsorted(times, times[-1] - seconds))
        return np.linspace(len(times) - 1, start, count).round().astype(int)[::-1].tolist()

    return _sampled(probe(path), indices)


def _sampled(source: Source, indices: Choice) -> list[Frame]:
    found = _seek_frames(source, indices, accurate=False)
    return found if found is not None else _read_frames(source, indices, True, accurate=False)


def _read_frames(source: Source, choose: Choice, allow_truncated: bool, accurate: bool = True) -> list[Frame]:
    """The frames at the indices that `choose` returns for all times, read from the start of the video."""

    def read(times: np.ndarray) -> list[Frame]:
        indices = choose(times)
        stream = frames(source, accurate=accurate, allow_damage=allow_truncated, only=set(indices))
        return frames_at(stream, list(indices))

    times = frame_times(source)
    found = read(times)
    if all(frame.index < len(times) and abs(times[frame.index] - frame.time) < 1e-4 for frame in found):
        return found
    return read(decode_times(source))  # the packets' times were not those of the frames


def _seek_frames(source: Source, choose: Choice, *, accurate: bool) -> list[Frame] | None:
    """The frames at the indices that `choose` returns for all times, each decoded from the keyframe before it.

    None if that is unreliable: packets may not be frames, or a packet is damaged, or a frame is not at its packet's time.
    """
    timeline = packet_timeline(source)
    if timeline is None or not len(timeline.keys):
        return None
    end = int(timeline.places[:, 1:].sum(axis=1).max())
    if ends_early(source, timeline.times[-1], np.diff(timeline.times).max(initial=0.0), end):
        return None
    indices = list(choose(timeline.times))
    ticks = timeline.ticks[sorted(set(indices))].tolist()
    to_rgb = converter(source, accurate)
    with open_video(source.path) as (container, stream):
        rgb_at = {frame.pts: to_rgb(frame) for frame in _decode_at(container, stream, timeline, ticks)}
    if len(rgb_at) < len(ticks):
        return None
    return [Frame(index, float(timeline.times[index]), rgb_at[timeline.ticks[index]]) for index in indices]


def _decode_at(
    container: InputContainer, stream: VideoStream, timeline: Timeline, ticks: Sequence[int]
) -> Iterator[av.VideoFrame]:
    """Yield the frames at ascending `ticks`, each decoded from the last keyframe before it; stops at a missing frame."""
    decoder = stream.codec_context
    decoder.thread_type, decoder.thread_count = "AUTO", decoding_threads()
    wanted = deque(ticks)
    packets: Iterator[av.Packet] = iter(())
    reached: int | None = None
    with suppress(av.FFmpegError):
        while wanted:
            place = max(0, int(np.searchsorted(timeline.keys, wanted[0], side="right")) - 1)
            if reached is None or timeline.keys[place] > reached:
                container.seek(int(timeline.entries[place]), stream=stream)
                packets, reached = container.demux(stream), timeline.keys[place]
            packet = next(packets, None)
            if packet is None:
                return
            if packet.size and not timeline.has(packet):
                return
            reached = max(reached, timestamp(packet))
            # What nothing refers to need not be decoded on the way.
            decoder.skip_frame = "DEFAULT" if packet.pts in ticks else "NONREF"
            for frame in decoder.decode(packet):
                if frame.pts is None or (wanted and frame.pts > wanted[0]):
                    return
                if wanted and frame.pts == wanted[0]:
                    if frame.is_corrupt or frame.interlaced_frame:
                        return
                    wanted.popleft()
                    yield frame


def midpoint_indices(times: np.ndarray, count: int, constant_rate: bool = True) -> list[int]:
    """Indices of the frames at the midpoints of `count` equal segments of a video.

    `times` float [N] are the seconds at which each frame is shown. With `constant_rate` the segments are (N - 1) / count
    frames long, the rule of InternVL's model cards. Raises UsageError for a count below 1, ItemError without frames.
    """
    _check_count(count)
    if len(times) == 0:
        raise ItemError("the video has no frames", "give a video with at least one frame")
    if constant_rate:
        segment = (len(times) - 1) / count
        return [int(segment / 2 + np.round(segment * i)) for i in range(count)]
    middles = times[-1] * (np.arange(count) + 0.5) / count
    return (np.searchsorted(times, middles, side="right") - 1).clip(0).tolist()


def keyframe_indices(motion: np.ndarray, shortest: int, longest: int) -> list[int]:
    """Indices of keyframes, ascending: the first frame, the last one, and those with the most motion.

    `motion` float [N]: how much each frame differs from the one before it (see `frame_motion`). `shortest` and `longest` are
    the interval between keyframes, in frames. If they are equal, keyframes are exactly that far apart. Otherwise, while two
    keyframes are further apart than `longest`, the frame with the most motion becomes a keyframe, and frames nearer to it
    than `shortest` are excluded. A video with little motion can keep a wider interval. The rule of FRESCO (Yang et al., CVPR
    2024), except that the last frame is always a keyframe. Raises UsageError for impossible intervals.
    """
    if not 1 <= shortest <= longest:
        raise UsageError(
            f"the intervals of keyframes are {shortest} to {longest} frames", "set 1 <= min_interval <= max_interval"
        )
    count = len(motion)
    if shortest == longest:
        return sorted({*range(0, count, shortest), count - 1})
    keys, left = {0, count - 1}, np.array(motion, float)
    left[:shortest] = left[-shortest:] = -1
    while np.diff(sorted(keys)).max(initial=0) > longest and left.max() >= 0:
        most = int(left.argmax())
        left[max(0, most - shortest) : most + shortest] = -1
        keys.add(most)
    return sorted(keys)


def frame_motion(images: Iterable[np.ndarray]) -> np.ndarray:
    """How much each image, uint8 [H, W, 3], differs from the one before it, float64 [N]; 0 for the first.

    The mean squared difference of the two after a 9 x 9 Gaussian blur, with black at -1 and white at 1.
    """
    motion: list[float] = []
    before: np.ndarray | None = None
    for image in images:
        blurred = cv2.GaussianBlur(image, (9, 9), 0).astype(np.float32)
        motion.append(0.0 if before is None else float(np.square((blurred - before) / 127.5).mean()))
        before = blurred
    return np.array(motion)


def frames_at(stream: Iterable[Frame], indices: list[int]) -> list[Frame]:
    """The frames of a stream at ascending `indices`, which may repeat; the last frame for indices beyond the end."""
    selected: list[Frame] = []
    wanted = deque(indices)
    frame: Any = None
    for frame in stream:
        while wanted and wanted[0] <= frame.index:
            selected.append(frame)
            wanted.popleft()
        if not wanted:
            break
    return selected + [frame] * len(wanted)


def _check_count(count: int) -> None:
    if count < 1:
        raise UsageError(f"{count} frames cannot be selected", "set a count of 1 or more")
