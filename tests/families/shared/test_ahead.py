"""Values made ahead: in order, bounded, with their errors, and without a thread that stays behind."""

import threading

import pytest

from stages.families.shared.ahead import ahead


class Source:
    """Counts values as they are made and read, and knows in which thread it was closed."""

    def __init__(self, count, error=None):
        self.count, self.error = count, error
        self.made, self.read, self.most_ahead, self.closed_in = 0, 0, 0, None

    def values(self):
        try:
            for number in range(self.count):
                self.made += 1
                self.most_ahead = max(self.most_ahead, self.made - self.read)
                yield number
            if self.error:
                raise self.error
        finally:
            self.closed_in = threading.current_thread()


def read_all(source, count=3):
    with ahead(source.values(), count) as values:
        read = []
        for value in values:
            source.read += 1
            read.append(value)
    return read


@pytest.fixture(autouse=True)
def threads():
    """No thread may be left behind."""
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 50])
def test_values_come_in_order_and_are_made_in_another_thread(count):
    source = Source(count)
    assert read_all(source) == list(range(count))
    assert source.closed_in not in (None, threading.current_thread())


def test_at_most_so_many_values_are_made_before_they_are_read():
    """The reader waits until the others are made; one value more is in its hands before it counts it."""
    source, made = Source(20), threading.Event()
    original = source.values

    def watched():
        for number in original():
            if source.made == 4:
                made.set()
            yield number

    with ahead(watched(), 3) as values:
        next(values)
        assert made.wait(60)
        assert source.made == 4
        for _ in values:
            source.read += 1
    assert source.most_ahead <= 3 + 2


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("wrong"), KeyboardInterrupt()])
def test_an_error_of_the_source_reaches_the_reader_as_it_is_after_the_values_before_it(error):
    source, read = Source(4, error), []
    with pytest.raises(type(error)) as raised, ahead(source.values(), 2) as values:
        read.extend(value for value in [next(values) for _ in range(4)])
        next(values)
    assert raised.value is error and read == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_an_error_of_the_reader_closes_the_source_in_its_thread(error):
    source = Source(1000)
    with pytest.raises(type(error)) as raised, ahead(source.values(), 2) as values:
        next(values)
        raise error
    assert raised.value is error and source.made < 1000
    assert source.closed_in not in (None, threading.current_thread())


def test_a_chain_of_generators_is_closed_from_its_outer_end():
    """As decode builds one: pixels of the frames of a network, whose cache the inner generator clears."""
    inner = Source(1000)
    with ahead((2 * value for value in inner.values()), 2) as values:
        assert next(values) == 0
    assert inner.closed_in not in (None, threading.current_thread())
