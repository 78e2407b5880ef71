"""Stages chained in one thread or in one each: the same items, the same number in progress, nothing left behind."""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator

import pytest

from genenc_core import errors
from genenc_core.encoding import stages


@contextlib.contextmanager
def in_one_thread() -> Iterator[stages.Stages]:
    yield stages.InOneThread()


@contextlib.contextmanager
def in_threads() -> Iterator[stages.InThreads]:
    through = stages.InThreads()
    threads = [threading.Thread(target=each.work) for each in through.threads.values()]
    for each in threads:
        each.start()
    try:
        yield through
    finally:
        through.end()
        for each in threads:
            each.join(300)
        assert not any(each.is_alive() for each in threads)


class Source:
    """Numbers, and what became of them."""

    def __init__(self, count: int, *, fails_at: int | None = None) -> None:
        self.count = count
        self.fails_at = fails_at
        self.made = 0
        self.closed = False

    def items(self) -> Generator[int, None, None]:
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise OSError(f"no number {number}")
                self.made += 1
                yield number
        finally:
            self.closed = True


both = pytest.mark.parametrize("way", [in_one_thread, in_threads])
Way = Callable[[], contextlib.AbstractContextManager[stages.Stages]]


@both
def test_items_pass_two_stages_in_order(way: Way) -> None:
    source = Source(20)

    def doubled(numbers: Iterator[int]) -> Generator[int, None, None]:
        for number in numbers:
            yield 2 * number

    with (
        way() as through,
        through.stream(stages.LOAD, source.items()) as first,
        through.stream(stages.ENCODE, doubled(first)) as second,
    ):
        assert through.call(stages.REDUCE, lambda: list(second)) == list(range(0, 40, 2))
    assert source.closed


@both
def test_no_more_items_are_in_progress_than_asked_for(way: Way) -> None:
    source = Source(50)
    with way() as through, through.stream(stages.LOAD, source.items()) as items:
        for taken, _ in enumerate(items, 1):
            assert source.made <= taken


@both
def test_every_item_made_was_taken_and_the_source_is_closed(way: Way) -> None:
    source = Source(50)
    with way() as through:
        with through.stream(stages.LOAD, source.items()) as items:
            taken = [next(items), next(items)]
        assert source.closed
        assert taken == list(range(source.made))
        assert source.made < 50


@both
def test_an_exception_of_a_stage_reaches_the_caller(way: Way) -> None:
    source = Source(9, fails_at=5)
    with way() as through:
        with (
            pytest.raises(OSError, match="no number 5"),
            through.stream(stages.LOAD, source.items()) as items,
        ):
            through.call(stages.REDUCE, lambda: list(items))
        assert source.closed
        assert through.call(stages.STORE, lambda: "next") == "next"


def test_a_failure_is_of_the_stage_that_raised_it() -> None:
    source = Source(9, fails_at=5)
    with in_threads() as through:
        with (
            contextlib.suppress(OSError),
            through.stream(stages.LOAD, source.items()) as items,
        ):
            through.call(stages.REDUCE, lambda: list(items))
        found = {name: thread.failure for name, thread in through.threads.items()}
    assert found == {"load": "OSError: no number 5", "encode": "", "reduce": "", "store": ""}
    assert [thread.done for thread in through.threads.values()] == [5, 0, 0, 0]


def test_a_stop_is_no_failure_of_a_stage() -> None:
    def stopped() -> None:
        raise errors.Stopped("stopped on request")

    with in_threads() as through:
        with pytest.raises(errors.Stopped):
            through.call(stages.STORE, stopped)
        assert through.threads[stages.STORE].stopped


def test_each_stage_works_in_a_thread_of_its_own() -> None:
    seen: dict[str, set[int]] = {name: set() for name in stages.NAMES}

    def noting(name: str, items: Iterator[int]) -> Generator[int, None, None]:
        for item in items:
            seen[name].add(threading.get_ident())
            yield item

    with (
        in_threads() as through,
        through.stream(stages.LOAD, noting(stages.LOAD, iter(range(6)))) as first,
        through.stream(stages.ENCODE, noting(stages.ENCODE, first)) as second,
    ):
        assert through.call(stages.REDUCE, lambda: list(noting(stages.REDUCE, second))) == list(range(6))
        through.call(stages.STORE, lambda: seen[stages.STORE].add(threading.get_ident()))
    assert [len(found) for found in seen.values()] == [1, 1, 1, 1]
    assert len({threading.get_ident()}.union(*seen.values())) == 5


@both
def test_a_stage_begins_with_the_first_item_of_the_one_before_it(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(stages.time, "time", lambda: float(next(clock)))

    def passed(items: Iterator[int]) -> Generator[int, None, None]:
        yield from items

    with way() as through:
        timed = stages.Timed(through)
        with (
            timed.stream(stages.LOAD, Source(3).items()) as loaded,
            timed.stream(stages.ENCODE, passed(loaded)) as encoded,
        ):
            assert timed.call(stages.REDUCE, lambda: list(encoded)) == [0, 1, 2]
        timed.call(stages.STORE, lambda: None)
    assert list(timed.spans) == ["load", "encode", "reduce", "store"]
    begins, ends = zip(*timed.spans.values(), strict=True)
    assert list(begins) == sorted(set(begins))
    assert list(ends) == sorted(set(ends))
    assert begins[3] > ends[2]
