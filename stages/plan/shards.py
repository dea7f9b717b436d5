"""Which clips go through the stages together, fixed at the first plan so that later clips touch no earlier shard."""

from __future__ import annotations

import math
from collections.abc import Sequence

CLIPS_PER_SHARD = 16
RULES_PER_RUN = 300  # each costs Snakemake some 7 ms and 40 kB at every start: 10,000 clips have to stay below 500 MB


def assign(ids: Sequence[str], fixed: Sequence[Sequence[str]], workers: int, jobs_per_shard: int) -> list[list[str]]:
    """The shards of a run: those that were fixed, as they were, then new ones for the ids that are in none.

    At least as many shards as workers, more where one would pass 16 clips, and larger ones where a run would then pass
    about 300 rules.
    """
    known = {identity for shard in fixed for identity in shard}
    new = [identity for identity in ids if identity not in known]
    if not new:
        return [list(shard) for shard in fixed]
    rooms = max(1, RULES_PER_RUN // jobs_per_shard - len(fixed))
    count = max(min(workers, len(new)), min(math.ceil(len(new) / CLIPS_PER_SHARD), rooms))
    bounds = [round(len(new) * part / count) for part in range(count + 1)]
    return [*map(list, fixed), *(new[start:end] for start, end in zip(bounds, bounds[1:]))]
