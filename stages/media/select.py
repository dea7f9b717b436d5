"""Choosing frames of a video: the last ones, the first ones, the middles of equal segments, those where it moves."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import cv2
import numpy as np

from stages.media.probe import Source, frame_times, probe
from stages.media.read import Frame, Truncated, available_threads, frames, frames_near_end
from stages.runtime.errors import ItemError, UsageError

SEEK_BEYOND = 20.0  # seconds: shorter videos are read from the start, which is as fast and needs no index
PREROLL = 5.0  # seconds decoded before the frames that are wanted

_IMPORTED_BY = os.getpid()


def first(path, count: int = 1, *, allow_truncated: bool = False) -> list[Frame]:
    """The first `count` frames (fewer where the video is shorter). Raises as `last`, for damage before them."""
    _check_count(count)
    return list(islice(whole(probe(path), allow_truncated), count))


def last(path, count: int = 1, *, allow_truncated: bool = False) -> list[Frame]:
    """The last `count` frames in display order (fewer where the video is shorter), holding no more than those.

    A long video is read from near its end. Raises Truncated for a damaged video, unless `allow_truncated` takes the
    last frames that can be read.
    """
    _check_count(count)
    source = probe(path)
    if source.duration > SEEK_BEYOND:
        try:
            tail = deque(frames_near_end(source, PREROLL + count / float(source.fps)), maxlen=count)
        except Truncated:
            tail = ()
        if len(tail) == count:
            return _numbered(tail, frame_times(source))
    return list(deque(whole(source, allow_truncated), maxlen=count))


def midpoints(path, count: int, *, allow_truncated: bool = False) -> list[Frame]:
    """The frames in the middle of `count` equal segments; frames of a short video repeat. Raises as `last`."""
    source = probe(path)
    indices = midpoint_indices(frame_times(source), count, source.constant_rate)
    return pick(whole(source, allow_truncated), indices)


def sample(path, n_segments: int, include_last: bool = False) -> list[Frame]:
    """Frames for a model to look at: the middles of `n_segments` equal segments, then the last frame if asked for.

    As `midpoints`, but faster: the default conversion, and random access where the file is plain. A truncated video is
    sampled over the frames that it has.
    """
    source = probe(path)
    times = frame_times(source)
    indices = midpoint_indices(times, n_segments, source.constant_rate)
    if include_last:
        indices.append(len(times) - 1)
    complete = len(times) >= (source.declared_frames or 0)
    if source.plain and complete and os.getpid() == _IMPORTED_BY:  # decord's threads do not survive a fork
        if (chosen := _sample_decord(source, indices, times)) is not None:
            return chosen
    return pick(whole(source, True, accurate=False), indices)


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


def whole(source: Source, allow_truncated: bool, accurate: bool = True) -> Iterator[Frame]:
    """Every frame, as `frames`; of a truncated video, where that is allowed, those that are there, and no error."""
    decoded = 0
    try:
        for frame in frames(source, accurate=accurate):
            yield frame
            decoded += 1
    except Truncated:
        if not (allow_truncated and decoded):
            raise


def _numbered(tail: Iterable[Frame], times: np.ndarray) -> list[Frame]:
    """Frames read from the middle of a video on, with their places in the whole."""
    return [Frame(int(np.abs(times - frame.time).argmin()), frame.time, frame.rgb) for frame in tail]


def _sample_decord(source: Source, indices: list[int], times: np.ndarray) -> list[Frame] | None:
    """The frames at `indices` by random access; None where decord is missing or cannot be relied on for the file."""
    try:
        import decord
    except ImportError:
        return None
    try:
        reader = decord.VideoReader(os.path.abspath(source.path), num_threads=available_threads())
        if len(reader) != len(times):
            return None
        batch = reader.get_batch(indices).asnumpy()
    except decord.DECORDError:
        return None
    return [Frame(i, float(times[i]), rgb) for i, rgb in zip(indices, batch, strict=True)]


def _check_count(count: int):
    if count < 1:
        raise UsageError(f"{count} frames cannot be chosen", "ask for 1 or more")
