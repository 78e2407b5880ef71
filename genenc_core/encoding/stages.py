"""The stages of a shard (load, encode, reduce, store), chained by iterators in one thread or with a thread for each.

Each stage pulls from the one before it, which produces an item only when asked: the order of all steps, and the items
in memory, are the same in both cases. Items stay in the process.
"""

import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Final, Generic, Protocol, Self, TypeVar

from genenc_core import errors

LOAD: Final = "load"
ENCODE: Final = "encode"
REDUCE: Final = "reduce"
STORE: Final = "store"
NAMES: Final = (LOAD, ENCODE, REDUCE, STORE)

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stages(Protocol):
    """Runs the stages of one shard after another."""

    def stream(self, stage: str, items: Generator[Item, None, None], /) -> AbstractContextManager[Iterator[Item]]:
        """Produce `items` in `stage` until the block ends, which closes them; the iterator raises their exceptions."""
        ...

    def call(self, stage: str, work: Callable[[], Result], /) -> Result:
        """Do `work` in `stage` and return its result; raises as `work`."""
        ...


class InOneThread:
    """Runs all stages in the caller's thread."""

    def stream(
        self, _stage: str, items: Generator[Item, None, None]
    ) -> AbstractContextManager[Generator[Item, None, None]]:
        """Implement `Stages.stream`."""
        return contextlib.closing(items)

    def call(self, _stage: str, work: Callable[[], Result]) -> Result:
        """Implement `Stages.call`."""
        return work()


IN_ONE_THREAD: Final = InOneThread()


class Timed:
    """Notes when each stage of a shard began, with the first item of the stage before it, and ended."""

    def __init__(self, through: Stages) -> None:
        self.spans: dict[str, tuple[float, float]] = {}
        """Unix times in seconds, by stage."""
        self._through = through
        self._first: dict[str, float] = {}

    def stream(self, stage: str, items: Generator[Item, None, None]) -> AbstractContextManager[Iterator[Item]]:
        """Implement `Stages.stream`."""

        def timed() -> Generator[Item, None, None]:
            with self._noting(stage), contextlib.closing(items):
                for item in items:
                    self._first.setdefault(stage, time.time())
                    yield item

        return self._through.stream(stage, timed())

    def call(self, stage: str, work: Callable[[], Result]) -> Result:
        """Implement `Stages.call`."""

        def timed() -> Result:
            with self._noting(stage):
                return work()

        return self._through.call(stage, timed)

    @contextlib.contextmanager
    def _noting(self, stage: str) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            earlier = NAMES[: NAMES.index(stage)][-1:]
            self.spans[stage] = max(began, *(self._first.get(each, began) for each in earlier), began), time.time()


class StageThread:
    """One stage of a group of shards: what is submitted is done by the thread that calls `work`, until `end`."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.done = 0
        """Number of items produced or calls done."""
        self.failure = ""
        """Why this stage failed first; empty if it did not."""
        self.stopped = False
        """Whether it was stopped on request."""
        self._submitted: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ended = False

    def work(self) -> None:
        """Do what is submitted, in its submitter's context; return after `end`, and at once when called again."""
        while not self._ended:
            item = self._submitted.get()
            if item is None:
                self._ended = True
            else:
                item()

    def submit(self, work: Callable[[], None]) -> None:
        """Queue `work`, which raises nothing."""
        context = contextvars.copy_context()
        self._submitted.put(lambda: context.run(work))

    def end(self) -> None:
        """Let `work` return when everything submitted before is done."""
        self._submitted.put(None)


class InThreads:
    """Runs each stage in the thread that calls `work` of its `StageThread`."""

    def __init__(self) -> None:
        self.threads: Mapping[str, StageThread] = {stage: StageThread(stage) for stage in NAMES}
        self._last = 0
        """Identity of the last exception, which itself would keep its batch in memory."""

    @contextlib.contextmanager
    def stream(self, stage: str, items: Generator[Item, None, None]) -> Iterator[Iterator[Item]]:
        """Implement `Stages.stream`."""
        thread = self.threads[stage]
        channel = _Channel[Item]()

        def produce() -> None:
            with channel.filling(), self._noting(thread), contextlib.closing(items):
                while channel.wanted():
                    for item in items:
                        channel.put(item)
                        thread.done += 1
                        break
                    else:
                        return

        thread.submit(produce)
        try:
            yield channel
        finally:
            channel.close()

    def call(self, stage: str, work: Callable[[], Result]) -> Result:
        """Implement `Stages.call`."""
        thread = self.threads[stage]
        channel = _Channel[Result]()

        def do() -> None:
            with channel.filling(), self._noting(thread):
                channel.put(work())
                thread.done += 1

        thread.submit(do)
        return next(channel)

    def end(self) -> None:
        """Let the threads return when everything submitted before is done."""
        for thread in self.threads.values():
            thread.end()

    @contextlib.contextmanager
    def _noting(self, thread: StageThread) -> Iterator[None]:
        """Record an exception of the block as the stage's failure, unless it was raised by the stage before it."""
        try:
            yield
        except BaseException as error:
            if id(error) != self._last:
                thread.stopped |= isinstance(error, errors.Stopped)
                thread.failure = thread.failure or f"{type(error).__name__}: {error}"
            self._last = id(error)
            raise


class _Channel(Generic[Item]):
    """Items from one thread to another, produced only when they are asked for."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self._items: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._closed = False
        self._filled = threading.Event()

    def wanted(self) -> bool:
        """Wait until an item is asked for; return False if no more will be."""
        self._permits.acquire()
        return not self._closed

    def put(self, item: Item) -> None:
        """Hand over an item."""
        self._items.put((item,))

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """End the items when the block ends; the consumer gets its exception."""
        try:
            yield
        except BaseException as error:
            self._error = error
        finally:
            self._filled.set()
            self._items.put(None)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        self._permits.release()
        if self._error is None:
            found = self._items.get()
            if found is not None:
                return found[0]
            self._items.put(None)  # for the next call
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Ask for no more, and wait until the producer has stopped."""
        self._closed = True
        self._permits.release()
        self._filled.wait()
