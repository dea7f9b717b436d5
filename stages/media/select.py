"""Choosing frames of a video: the last ones, the first ones, the middles of equal segments, those where it moves."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

import av
import cv2
import numpy as np

from stages.media.decoding import decoding_threads, tick_of
from stages.media.pixels import converter
from stages.media.probe import Source, Timeline, decoded_times, frame_times, open_video, packet_timeline, probe
from stages.media.read import Frame, ends_early, frames
from stages.runtime.errors import ItemError, UsageError

SEEK_BEYOND = 20.0  # seconds: shorter videos are read from the start, which is as fast and needs no index

Choice = Callable[[np.ndarray], Sequence[int]]  # from the seconds of all frames to ascending indices, which may repeat


def first(path, count: int = 1, *, allow_truncated: bool = False) -> list[Frame]:
    """The first `count` frames (fewer where the video is shorter). Raises as `last`, for damage before them."""
    _check_count(count)
    return list(islice(frames(probe(path), allow_damage=allow_truncated), count))


def last(path, count: int = 1, *, allow_truncated: bool = False) -> list[Frame]:
    """The last `count` frames in display order (fewer where the video is shorter), holding no more than those.

    A long video is read from near its end. Raises Damaged and Truncated for a damaged video, unless `allow_truncated` takes
    the last frames that are good.
    """
    _check_count(count)
    source = probe(path)
    if source.duration > SEEK_BEYOND:
        if (tail := _sought(source, lambda times: range(max(0, len(times) - count), len(times)), accurate=True)) is not None:
            return tail
    return list(deque(frames(source, allow_damage=allow_truncated), maxlen=count))


def midpoints(path, count: int, *, allow_truncated: bool = False) -> list[Frame]:
    """The frames in the middle of `count` equal segments; frames of a short video repeat. Raises as `last`."""
    source = probe(path)
    return _chosen(source, lambda times: midpoint_indices(times, count, source.constant_rate), allow_truncated)


def evenly(path, count: int) -> list[Frame]:
    """`count` frames spread evenly over all, whatever their times; all where there are as many. Raises as `last`."""

    def indices(times: np.ndarray) -> Sequence[int]:
        return range(count) if len(times) == count else midpoint_indices(times, count)

    return _chosen(probe(path), indices, False)


def sample(path, n_segments: int, include_last: bool = False) -> list[Frame]:
    """Frames for a model to look at: the middles of `n_segments` equal segments, then the last frame if asked for.

    As `midpoints`, but faster: the default conversion, and only the parts of the video that are needed are read. A damaged
    video is sampled over the frames that are good.
    """
    source = probe(path)

    def indices(times: np.ndarray) -> list[int]:
        return midpoint_indices(times, n_segments, source.constant_rate) + [len(times) - 1] * include_last

    found = _sought(source, indices, accurate=False)
    return found if found is not None else _chosen(source, indices, True, accurate=False)


def _chosen(source: Source, choose: Choice, allow_truncated: bool, accurate: bool = True) -> list[Frame]:
    """The frames that are chosen by the times of all, read from the first one on."""

    def read(times: np.ndarray) -> list[Frame]:
        indices = choose(times)
        stream = frames(source, accurate=accurate, allow_damage=allow_truncated, only=set(indices))
        return pick(stream, list(indices))

    times = frame_times(source)
    found = read(times)
    if all(frame.index < len(times) and abs(times[frame.index] - frame.time) < 1e-4 for frame in found):
        return found
    return read(decoded_times(source))  # the packets' times were not those of the frames


def _sought(source: Source, choose: Choice, *, accurate: bool) -> list[Frame] | None:
    """The frames that are chosen by the times of all, each decoded from the keyframe before it.

    None where that cannot be trusted: where packets may not be frames, or one comes that is damaged or not the one at the
    packet's very time.
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
        found = {frame.pts: to_rgb(frame) for frame in _frames_at(container, stream, timeline, ticks)}
    if len(found) < len(ticks):
        return None
    return [Frame(index, float(timeline.times[index]), found[timeline.ticks[index]]) for index in indices]


def _frames_at(container, stream, timeline: Timeline, ticks: Sequence[int]) -> Iterator[av.VideoFrame]:
    """The decoded frames at ascending `ticks`, each from the last keyframe before it on; ends where one is missing."""
    decoder = stream.codec_context
    decoder.thread_type, decoder.thread_count = "AUTO", decoding_threads()
    wanted, packets, reached = deque(ticks), iter(()), None
    with suppress(av.FFmpegError):
        while wanted:
            place = max(0, np.searchsorted(timeline.keys, wanted[0], side="right") - 1)
            if reached is None or timeline.keys[place] > reached:
                container.seek(int(timeline.entries[place]), stream=stream)
                packets, reached = container.demux(stream), timeline.keys[place]
            packet = next(packets, None)
            if packet is None:
                return
            if packet.size and not timeline.has(packet):
                return
            reached = max(reached, tick_of(packet))
            # What nothing refers to need not be decoded on the way.
            decoder.skip_frame = "DEFAULT" if packet.pts in ticks else "NONREF"
            for frame in decoder.decode(packet):
                if frame.pts is None or wanted and frame.pts > wanted[0]:
                    return
                if wanted and frame.pts == wanted[0]:
                    if frame.is_corrupt or frame.interlaced_frame:
                        return
                    wanted.popleft()
                    yield frame


def midpoint_indices(times: np.ndarray, count: int, constant_rate: bool = True) -> list[int]:
    """Indices of the frames shown in the middle of `count` equal segments of a video.

    `times` float [N]: seconds at which each frame is shown; even when `constant_rate`, and then frames are counted, by
    the rule of InternVL's model cards (segments of (N - 1) / count frames).
    """
    _check_count(count)
    if len(times) == 0:
        raise ItemError("the video has no frames to choose from", "give a video with at least one frame")
    if constant_rate:
        segment = (len(times) - 1) / count
        return [int(segment / 2 + np.round(segment * i)) for i in range(count)]
    middles = times[-1] * (np.arange(count) + 0.5) / count
    return (np.searchsorted(times, middles, side="right") - 1).clip(0).tolist()


def keyframe_indices(motion: np.ndarray, shortest: int, longest: int) -> list[int]:
    """Indices of the frames to translate, ascending: the first one, the last one, and those where most moves.

    `motion` float [N]: how much each frame differs from the one before it (see `motion_of`). `shortest` and `longest` are
    frames from one key to the next. Where they are equal, keys are exactly that far apart. Else, as long as two keys are
    further apart than `longest`, the frame that moves most becomes one, and those nearer to it than `shortest` no more: a
    video that moves little may so keep a wider gap. The rule of FRESCO (Yang et al., CVPR 2024); the last frame is always a
    key. Raises UsageError for intervals that cannot be.
    """
    if not 1 <= shortest <= longest:
        raise UsageError(f"keyframes {shortest} to {longest} frames apart cannot be", "take 1 <= mininterv <= maxinterv")
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


def motion_of(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """By how much each picture, uint8 [H, W, 3], differs from the one before it, float64 [N]; 0 for the first.

    The mean square of the difference of the two, blurred (9 x 9 Gaussian), with black at -1 and white at 1.
    """
    motion, before = [], None
    for picture in pictures:
        blurred = cv2.GaussianBlur(picture, (9, 9), 0).astype(np.float32)
        motion.append(0.0 if before is None else float(np.square((blurred - before) / 127.5).mean()))
        before = blurred
    return np.array(motion)


def pick(stream: Iterable[Frame], indices: list[int]) -> list[Frame]:
    """Frames of a stream at ascending `indices`, which may repeat; beyond the end, the last frame."""
    chosen, wanted = [], deque(indices)
    frame = None
    for frame in stream:
        while wanted and wanted[0] <= frame.index:
            chosen.append(frame)
            wanted.popleft()
        if not wanted:
            break
    return chosen + [frame] * len(wanted)


def _check_count(count: int):
    if count < 1:
        raise UsageError(f"{count} frames cannot be chosen", "ask for 1 or more")
