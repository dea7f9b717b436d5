"""Items that a worker computes together, each of which is still published, or fails, by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from stages.runtime.errors import ItemError
from stages.runtime.model import Model
from stages.runtime.options import Options
from stages.runtime.worker import Work, Worker

AnyOptions = TypeVar("AnyOptions", bound=Options)
Result = TypeVar("Result")


class BatchWorker(Worker[AnyOptions], Generic[AnyOptions, Result]):
    """A worker that computes several items at once.

    A batch is computed when the first of its items is due. The results of the others wait for their turn in the item loop.
    If a batch fails, its items are computed one by one.
    """

    def __init__(self, model: Model | None, device: str):
        super().__init__(model, device)
        self._works: list[Work[AnyOptions]] = []  # all items that are left to do, in order
        self._results: dict[str, Result] = {}  # of items that are not due yet, by their outputs
        self._alone: set[str] = set()  # outputs of the items of a batch that failed

    def prepare(self, works: Sequence[Work[AnyOptions]]) -> None:
        self._works = list(works)

    def run(self, work: Work[AnyOptions]) -> None:
        if work.item.output not in self._results:
            self._compute(self._batch(work))
        self.write(work, self._results.pop(work.item.output))

    @abstractmethod
    def batch_size(self, work: Work[AnyOptions]) -> int:
        """The most items that are computed together, by an option of an item, see `BatchOption`."""

    @abstractmethod
    def batch_key(self, work: Work[AnyOptions]) -> Hashable:
        """Equal for items that can be computed together."""

    @abstractmethod
    def compute(self, works: Sequence[Work[AnyOptions]]) -> Sequence[Result]:
        """The results of a batch, in order. Raises ItemError."""

    @abstractmethod
    def write(self, work: Work[AnyOptions], result: Result) -> None:
        """Write the artifact of an item to `work.output`. Raises ItemError."""

    def _batch(self, work: Work[AnyOptions]) -> list[Work[AnyOptions]]:
        """An item and later ones that can be computed together with it."""
        if work.item.output in self._alone:
            return [work]
        outputs = [other.item.output for other in self._works]
        later = self._works[outputs.index(work.item.output) + 1 :]
        due = (other for other in later if other.item.output not in self._alone | self._results.keys())
        key = self.batch_key(work)
        return [work, *(other for other in due if self.batch_key(other) == key)][: self.batch_size(work)]

    def _compute(self, works: Sequence[Work[AnyOptions]]) -> None:
        try:
            results = self.compute(works)
        except Exception as error:
            if len(works) == 1:
                raise
            self._alone |= {work.item.output for work in works}
            if not isinstance(error, ItemError):  # such as memory that ran out, which the item loop handles
                raise
            return self._compute(works[:1])
        self._results |= {work.item.output: result for work, result in zip(works, results, strict=True)}
