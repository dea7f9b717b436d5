"""Shards: as many as workers, at most 16 clips each, at most about 300 rules; fixed shards stay."""

import pytest

from stages.plan.shards import ShardSize, assign, reassign


def shard_sizes(clips, workers, jobs=5, fixed=()):
    return [len(shard) for shard in assign([f"c{n}" for n in range(clips)], fixed, workers, ShardSize(16, jobs))]


@pytest.mark.parametrize(
    ("clips", "workers", "expected"),
    [(1, 8, [1]), (8, 8, [1] * 8), (12, 8, None), (40, 1, None), (16, 1, [16]), (17, 1, None), (0, 4, [])],
)
def test_assign_gives_each_worker_a_shard_of_at_most_sixteen_clips(clips, workers, expected):
    sizes = shard_sizes(clips, workers)
    if expected is not None:
        assert sizes == expected
    assert sum(sizes) == clips
    assert len(sizes) >= min(workers, clips)
    assert max(sizes, default=0) <= 16
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize(("clips", "jobs"), [(10_000, 5), (500, 49)])
def test_assign_makes_larger_shards_only_beyond_three_hundred_rules(clips, jobs):
    sizes = shard_sizes(clips, 4, jobs)
    assert len(sizes) * jobs <= 300
    assert sum(sizes) == clips


def test_assign_keeps_fixed_shards_without_their_clips():
    assert assign(["b", "new"], [["a", "b"], ["c"]], 4, ShardSize(16, 5)) == [["a", "b"], ["c"], ["new"]]


def test_reassign_gives_unfinished_clips_to_more_workers():
    shards, size = [["a", "b", "c", "d"], ["e"]], ShardSize(16, 5)
    assert reassign(shards, {"b", "c", "d"}, 3, size) == [["a"], ["e"], ["b"], ["c"], ["d"]]
    assert reassign(shards, {"a", "b", "c", "d"}, 2, size) == [["a", "b"], ["e"], ["c", "d"]]  # a number that is free again
    assert reassign([], set(), 2, size) == []


@pytest.mark.parametrize(("unfinished", "workers"), [(set("abcde"), 2), (set("b"), 8), (set("be"), 1), (set(), 8)])
def test_reassign_keeps_shards_where_no_worker_would_gain(unfinished, workers):
    shards = [["a", "b", "c", "d"], ["e"]]
    assert reassign(shards, unfinished, workers, ShardSize(16, 5)) == shards


def test_assign_gives_every_worker_a_shard_beyond_the_limit_of_rules():
    assert len(shard_sizes(100, 8, jobs=49)) == 8


LINKS = [
    "extract_frames",
    *(f"{stage}.link{link:02d}" for link in range(1, 13) for stage in ("encode", "generate", "decode")),
]


def test_a_link_of_a_chain_counts_as_a_clip_and_fused_steps_as_one_job():
    assert ShardSize.of(["encode", "generate", "decode", "concat"], []) == ShardSize(16, 3)
    assert ShardSize.of(["encode", "generate", "decode", "concat"], ["encode", "generate", "decode"]) == ShardSize(16, 1)
    assert ShardSize.of([*LINKS, "concat"], []) == ShardSize(1, 37)
    assert ShardSize.of([*LINKS, "concat"], LINKS) == ShardSize(1, 1)


def test_a_thousand_fused_chains_are_many_small_shards():
    shards = assign([f"c{n}" for n in range(1000)], [], 8, ShardSize.of([*LINKS, "concat"], LINKS))
    assert len(shards) == 300 and {len(shard) for shard in shards} == {3, 4}
