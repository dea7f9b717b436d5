"""Shards: as many as workers, at most 16 clips, about 300 rules; what was fixed stays."""

import pytest

from stages.plan.shards import assign


def sizes(clips, workers, jobs=5, fixed=()):
    return [len(shard) for shard in assign([f"c{n}" for n in range(clips)], fixed, workers, jobs)]


@pytest.mark.parametrize(
    ("clips", "workers", "expected"),
    [(1, 8, [1]), (8, 8, [1] * 8), (12, 8, None), (40, 1, None), (16, 1, [16]), (17, 1, None), (0, 4, [])],
)
def test_as_many_as_workers_and_at_most_sixteen_clips(clips, workers, expected):
    made = sizes(clips, workers)
    if expected is not None:
        assert made == expected
    assert sum(made) == clips
    assert len(made) >= min(workers, clips)
    assert max(made, default=0) <= 16
    assert max(made, default=0) - min(made, default=0) <= 1


@pytest.mark.parametrize(("clips", "jobs"), [(10_000, 5), (500, 49)])
def test_larger_only_where_rules_would_pass_three_hundred(clips, jobs):
    made = sizes(clips, 4, jobs)
    assert len(made) * jobs <= 300
    assert sum(made) == clips


def test_fixed_shards_stay_even_when_their_clips_left():
    assert assign(["b", "new"], [["a", "b"], ["c"]], 4, 5) == [["a", "b"], ["c"], ["new"]]


def test_no_worker_is_left_without_a_shard_for_the_sake_of_the_rules():
    assert len(sizes(100, 8, jobs=49)) == 8
