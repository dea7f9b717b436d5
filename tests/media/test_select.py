import multiprocessing
import os

import numpy as np
import pytest

from stages.media.read import Truncated, frames
from stages.media.select import ending, first, frame_motion, keyframe_indices, last, midpoint_indices, midpoints, sample
from stages.runtime.errors import UsageError
from tests import zoo


def are_frames_at(selected, video, indices) -> bool:
    """Whether the frames are those at `indices` of a video that is read from its beginning."""
    truth = [frame.rgb for frame in frames(video)]
    return [frame.index for frame in selected] == indices and all(
        np.array_equal(frame.rgb, truth[frame.index]) for frame in selected
    )


@pytest.mark.parametrize(
    ("frame_count", "segments", "indices"),
    [
        (81, 8, [5, 15, 25, 35, 45, 55, 65, 75]),  # InternVL's video processor gives these
        (121, 8, [7, 22, 37, 52, 67, 82, 97, 112]),
        (1, 3, [0, 0, 0]),
        (4, 8, [0, 0, 1, 1, 2, 2, 2, 3]),
    ],
)
def test_midpoints_are_those_of_equal_segments(frame_count, segments, indices):
    assert midpoint_indices(np.arange(frame_count) / 16, segments) == indices


def test_midpoints_of_a_varying_rate_are_by_time():
    times = np.array([0.0, 0.1, 0.2, 0.3, 4.0])  # the fourth frame lasts for most of the clip
    assert midpoint_indices(times, 4, constant_rate=False) == [3, 3, 3, 3]
    assert midpoint_indices(times, 40, constant_rate=False)[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("count", "interval", "indices"),
    [(1, 5, [0]), (2, 5, [0, 1]), (3, 1, [0, 1, 2]), (11, 5, [0, 5, 10]), (12, 5, [0, 5, 10, 11])],
)
def test_keyframes_at_a_fixed_interval(count, interval, indices):
    assert keyframe_indices(np.zeros(count), interval, interval) == indices


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_short_video_has_its_ends_as_keyframes(count):
    assert keyframe_indices(np.zeros(count), 5, 20) == sorted({0, count - 1})


def test_keyframes_are_where_most_moves():
    motion = np.full(41, 0.1)
    motion[[12, 13, 30, 38]] = (0.8, 0.9, 0.5, 9.0)  # 38 is within 5 frames of the end
    assert keyframe_indices(motion, 5, 20) == [0, 13, 30, 40]
    assert keyframe_indices(motion, 2, 20) == [0, 13, 30, 38, 40]


def test_keyframes_are_never_nearer_than_the_shortest_interval():
    motion = np.random.default_rng(0).random(200)
    keys = np.diff(keyframe_indices(motion, 5, 8))
    assert keys.min() >= 5
    wide = np.diff(keyframe_indices(motion, 5, 100))
    assert wide.max() <= 100 and len(wide) < len(keys)


def test_keyframe_selection_ends_when_no_frame_is_left():
    assert keyframe_indices(np.zeros(12), 5, 6) == [0, 5, 11]
    assert keyframe_indices(np.ones(10), 6, 7) == [0, 9]


@pytest.mark.parametrize(("shortest", "longest"), [(0, 5), (6, 5)])
def test_impossible_keyframe_intervals_are_refused(shortest, longest):
    with pytest.raises(UsageError, match=f"the intervals of keyframes are {shortest} to {longest} frames"):
        keyframe_indices(np.zeros(9), shortest, longest)


def test_frame_motion_is_the_mean_square_of_the_blurred_difference():
    black, grey = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 51, np.uint8)
    assert frame_motion([black, grey, grey]) == pytest.approx([0, 0.4**2, 0])
    dots = black.copy()
    dots[::2, ::2] = 204  # a fine pattern is blurred to its mean, 51
    assert frame_motion([black, dots])[1] == pytest.approx(0.16, rel=0.1)


def test_first_last_and_midpoints_give_the_frames_of_the_video(tmp_path):
    video = zoo.plain(tmp_path)
    assert are_frames_at(first(video, 2), video, [0, 1])
    assert are_frames_at(last(video), video, [32])
    assert are_frames_at(last(video, 5), video, [28, 29, 30, 31, 32])
    assert are_frames_at(midpoints(video, 8), video, [2, 6, 10, 14, 18, 22, 26, 30])
    assert len(last(video, 100)) == len(first(video, 100)) == zoo.FRAMES
    with pytest.raises(UsageError, match="0 frames"):
        last(video, 0)


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_last_gives_the_last_frames_of_a_long_video(tmp_path, name):
    video = zoo.plain(tmp_path, name, frames=401, sound=30)
    assert are_frames_at(last(video, 3), video, [398, 399, 400])


@pytest.mark.parametrize("maker", [zoo.truncated, zoo.truncated_fragments, zoo.truncated_matroska])
def test_last_of_a_truncated_video_only_when_allowed(tmp_path, maker):
    video = maker(tmp_path)
    with pytest.raises(Truncated) as caught:
        last(video)
    (tail,) = last(video, allow_truncated=True)
    assert tail.index == caught.value.decoded - 1
    assert len(sample(video, 4, include_last=True)) == 5


def test_last_of_a_long_truncated_video(tmp_path):
    video = zoo.truncate(zoo.plain(tmp_path, frames=401, encoder=["-movflags", "+faststart"]))
    with pytest.raises(Truncated) as caught:
        last(video)
    assert last(video, allow_truncated=True)[0].index == caught.value.decoded - 1


@pytest.mark.parametrize("maker", [zoo.plain, zoo.varying_rate, lambda folder: zoo.rotated(folder, 90), zoo.ten_bit])
def test_sample_gives_the_midpoints_and_the_last_frame(tmp_path, maker):
    video = maker(tmp_path)
    selected, truth = sample(video, 4, include_last=True), [*midpoints(video, 4), *last(video)]
    for frame, other in zip(selected, truth, strict=True):
        assert (frame.index, frame.time) == (other.index, pytest.approx(other.time, abs=1e-3))
        assert np.abs(frame.rgb.astype(int) - other.rgb).mean() < 10


def _sample_into(queue, video):
    queue.put([frame.index for frame in sample(video, 4)])


@pytest.mark.parametrize(
    ("frame_count", "count", "indices"), [(33, 4, [16, 21, 27, 32]), (33, 1, [32]), (3, 4, [0, 1, 1, 2]), (1, 2, [0, 0])]
)
def test_ending_gives_frames_of_the_last_second_and_the_very_last(tmp_path, frame_count, count, indices):
    """Of a video of 16 frames a second."""
    found = ending(zoo.plain(tmp_path, frames=frame_count), count)
    assert [frame.index for frame in found] == indices
    assert [frame.time for frame in found] == pytest.approx([index / 16 for index in indices])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_sample_works_in_a_forked_process(tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork")
    video = zoo.plain(tmp_path)
    indices = [frame.index for frame in sample(video, 4)]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sample_into, args=(queue, video))
    child.start()
    assert queue.get(timeout=30) == indices
    child.join(timeout=30)
