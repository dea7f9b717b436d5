"""Makes values ahead of their reader, in a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")
END = object()


@contextmanager
def ahead(values: Generator[Value, None, None], count: int) -> Iterator[Iterator[Value]]:
    """Run a generator in a thread, at most `count` values ahead of the reader of the iterator that the block receives.

    The reader gets the generator's values in order, and its errors as they are. At the end of the block, also by an error,
    the value in the making is awaited, the generator is closed in its thread, and the thread ends.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        made = deque(thread.submit(next, values, END) for _ in range(count))

        def read() -> Iterator[Value]:
            while (value := made.popleft().result()) is not END:
                made.append(thread.submit(next, values, END))
                yield value  # type: ignore[misc]  # END is no value

        try:
            yield read()
        finally:
            for value in made:
                value.cancel()
            thread.submit(values.close)
