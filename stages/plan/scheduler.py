"""Keep Snakemake's scheduler from waking itself ever more often.

Snakemake 9.27 limits how many jobs it starts per second (`--max-jobs-per-timespan`, 100 by default). After each pass of its
scheduler it therefore starts a timer, and each timer that ends causes another pass, which starts another timer. Every job
that ends causes a pass too. So there are as many timers as jobs have ended, each causes a pass per second that looks at all
jobs that wait, and the time of the scheduler grows with the square of the jobs. One timer at a time is enough for the
limit. docs/upstream/snakemake-scheduler.md has the same change for Snakemake itself.
"""

from __future__ import annotations

import inspect
import textwrap
import threading
from typing import Any

METHOD = "_schedule_reevalutation"  # Snakemake's spelling
KNOWN = """
def _schedule_reevalutation(self, delay: int) -> None:
    threading.Timer(
        delay,
        lambda: self._open_jobs.release(),
    ).start()
"""


def limit_timers(scheduler: Any) -> bool:
    """Give a scheduler of Snakemake at most one timer per delay. False, and no change, if its code is unknown."""
    method = getattr(type(scheduler), METHOD, None)
    if method is None or textwrap.dedent(inspect.getsource(method)).strip() != KNOWN.strip():
        return False
    pending: set[int] = set()

    def wake(delay: int) -> None:
        pending.discard(delay)
        scheduler._open_jobs.release()

    def start_timer(delay: int) -> None:
        if delay not in pending:
            pending.add(delay)
            threading.Timer(delay, wake, (delay,)).start()

    setattr(scheduler, METHOD, start_timer)
    return True
