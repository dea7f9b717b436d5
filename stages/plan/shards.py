"""Group clips into shards. The first plan of a run fixes them; unfinished clips move only to give more workers work."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

CLIPS_PER_SHARD = 16  # generated clips: of a chain each link is one
RULES_PER_RUN = 300  # each costs Snakemake about 7 ms and 40 kB at every start; 10,000 clips have to stay below 500 MB


@dataclass(frozen=True)
class ShardSize:
    """How large shards are: the `clips` that one has at most, and the `jobs` that do its work."""

    clips: int
    jobs: int

    @classmethod
    def of(cls, steps: Sequence[str], fused: Collection[str]) -> ShardSize:
        """The size for a recipe with these steps, of which one job does the `fused` ones. A link counts as a clip."""
        clips_of_a_chain = sum(step.startswith("generate") for step in steps)
        alone = sum(step not in fused and step not in ("concat", "score") for step in steps)
        return cls(max(1, CLIPS_PER_SHARD // max(1, clips_of_a_chain)), max(1, alone + bool(fused)))

    @property
    def most_shards(self) -> int:
        """The number of shards of a run that gives about 300 rules, without those of films."""
        return max(1, RULES_PER_RUN // self.jobs)


def assign(ids: Sequence[str], fixed: Sequence[Sequence[str]], workers: int, size: ShardSize) -> list[list[str]]:
    """The shards of a run: the `fixed` ones unchanged, then new ones for the remaining ids.

    There are at least as many new shards as workers, and more if one would have too many clips, unless the run would have
    too many rules.
    """
    known = {identity for shard in fixed for identity in shard}
    new = [identity for identity in ids if identity not in known]
    return [*map(list, fixed), *split(new, workers, size.clips, max(1, size.most_shards - len(fixed)))]


def reassign(shards: Sequence[Sequence[str]], unfinished: Collection[str], workers: int, size: ShardSize) -> list[list[str]]:
    """The shards with the `unfinished` clips dealt anew, if fewer shards than workers have some; else unchanged.

    A finished clip keeps the number of its shard.
    """
    busy = sum(any(identity in unfinished for identity in shard) for shard in shards)
    if busy >= min(workers, len(unfinished)):
        return [list(shard) for shard in shards]
    moved = [identity for shard in shards for identity in shard if identity in unfinished]
    found = [[identity for identity in shard if identity not in unfinished] for shard in shards]
    for shard in split(moved, workers, size.clips, size.most_shards):
        if [] in found:
            found[found.index([])] = shard
        else:
            found.append(shard)
    return found


def split(ids: Sequence[str], workers: int, clips: int, most: int) -> list[list[str]]:
    """Shards of ids: as many as workers, more if one would exceed `clips`, but for that reason not more than `most`."""
    if not ids:
        return []
    count = max(min(workers, len(ids)), min(math.ceil(len(ids) / clips), most))
    bounds = [round(len(ids) * part / count) for part in range(count + 1)]
    return [list(ids[start:end]) for start, end in zip(bounds, bounds[1:])]
