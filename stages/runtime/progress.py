"""The progress of an item: a bar on a terminal, lines in a log file."""

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from stages.runtime.log import log

Step = TypeVar("Step")
SECONDS = 10.0  # least time between two lines of an item


def reaches_tenth(before: int, done: int, total: int) -> bool:
    """Whether a tenth of `total` steps lies after `before` and not after `done`."""
    return done * 10 // total > before * 10 // total


class StepBar(tqdm):
    """A progress bar over the steps of an item.

    Where standard error is not a terminal, it logs an event `progress` at every tenth of the steps instead, at most every 10
    seconds.
    """

    def __init__(self, total: int, item: str, unit: str = "step", done: int = 0):
        super().__init__(total=total, initial=done, desc=item, unit=unit, disable=None, leave=False)
        self._item, self._unit, self._total, self._done = item, unit, total, done
        self._logged_at = self._started = time.monotonic()

    def update(self, n: float | None = 1) -> bool | None:
        before, self._done = self._done, self._done + int(n or 0)
        now = time.monotonic()
        is_tenth = reaches_tenth(before, self._done, self._total)
        if self.disable and is_tenth and self._done < self._total and now - self._logged_at >= SECONDS:
            self._logged_at = now
            seconds = round(now - self._started, 1)
            log("progress", item=self._item, done=self._done, of=self._total, unit=self._unit, seconds=seconds)
        return super().update(n)


def track(steps: Sequence[Step], item: str, unit: str = "step") -> Iterator[Step]:
    """Yield `steps`, with a StepBar that counts each of them when it is done."""
    with StepBar(len(steps), item, unit) as bar:
        for step in steps:
            yield step
            bar.update()
