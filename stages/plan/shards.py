"""Which clips go through the stages together, fixed at the first plan so that later clips touch no earlier shard."""

from __future__ import annotations

import math
from collections.abc import Sequence

CLIPS_PER_SHARD = 16
RULES_PER_RUN = 500  # each costs Snakemake some 7 ms at every start, nested ones on a cluster included


def assign(ids: Sequence[str], fixed: Sequence[Sequence[str]], workers: int, jobs_per_shard: int) -> list[list[str]]:
    """The shards of a run: those that were fixed, as they were, then new ones for the ids that are in none.

    As many shards as workers, and more where one would pass 16 clips; larger ones where a run would pass about 500 rules.
    """
    known = {identity for shard in fixed for identity in shard}
    new = [identity for identity in ids if identity not in known]
    if not new:
        return [list(shard) for shard in fixed]
    rooms = max(1, RULES_PER_RUN // jobs_per_shard - len(fixed))
    count = min(max(min(workers, len(new)), math.ceil(len(new) / CLIPS_PER_SHARD)), rooms)
    bounds = [round(len(new) * part / count) for part in range(count + 1)]
    return [*map(list, fixed), *(new[start:end] for start, end in zip(bounds, bounds[1:]))]
