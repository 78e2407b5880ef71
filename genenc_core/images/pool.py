"""Threads that load images; one that hangs is given up and replaced, and never waited for at the end."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError

import torch

from genenc_core import errors
from genenc_core.images.inflight import Journal
from genenc_core.images.reading import LoadedImage, Request

CLOSING_SECONDS = 5.0
"""How long `close` waits for images in work."""
_FEWEST_HUNG = 4
_TICK = 1.0

# torch.set_num_threads also sets a process-wide default, so only one pool at a time may start its threads.
_STARTING = threading.Lock()


class Overdue(Exception):
    """An image took longer than its limit; its thread was given up."""


class TooManyHung(errors.GenencError):
    """More images than threads hang: no image's fault any more."""


class _Worker:
    """One thread: what it works on, since when, and whether it was given up."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.job: tuple[Request, Future[LoadedImage]] | None = None
        self.seen: tuple[Request, Future[LoadedImage]] | None = None
        self.age = 0.0
        self.thread: threading.Thread | None = None


def slots(threads: int) -> int:
    """Return how many threads a pool may have had, those given up included."""
    return 2 * threads + _most_hung(threads) + 1


class DecodePool:
    """Daemon threads that run `work`, each with torch operations on itself alone.

    The limit counts the time in which somebody waited for an image: while nobody does, or the whole process is
    suspended, nothing grows old.
    """

    def __init__(
        self, work: Callable[[Request], LoadedImage], *, threads: int, seconds: float, journal: Journal
    ) -> None:
        self._work = work
        self._threads = threads
        self._seconds = seconds
        self._journal = journal
        self._jobs: queue.SimpleQueue[tuple[Request, Future[LoadedImage]] | None] = queue.SimpleQueue()
        self._watching = threading.Lock()
        self._watched = time.monotonic()
        self._workers: list[_Worker] = []
        self._hung: list[_Worker] = []
        self._closed = False
        self._start(threads)

    def submit(self, request: Request) -> Future[LoadedImage]:
        """Queue one image."""
        future: Future[LoadedImage] = Future()
        self._jobs.put((request, future))
        return future

    def wait(self, future: Future[LoadedImage]) -> LoadedImage:
        """Return an image once it is loaded.

        Raises:
            Overdue: it took longer than the limit.
            TooManyHung: more threads hang than the pool has.
            OSError: as `reading.load`.
        """
        tick = min(_TICK, self._seconds / 4)
        while True:
            try:
                return future.result(tick)
            except TimeoutError:
                # An image's own error may be a TimeoutError as well.
                if future.done():
                    return future.result()
                self._watch(tick)

    def close(self) -> bool:
        """End the threads; return whether all of them did, so that none touches anything any more."""
        self._closed = True
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[1].cancel()
        for _worker in self._workers:
            self._jobs.put(None)
        end = time.monotonic() + CLOSING_SECONDS
        for thread in self._alive(self._workers):
            thread.join(max(end - time.monotonic(), 0))
        return not any(self._alive([*self._workers, *self._hung]))

    def _run(self, worker: _Worker) -> None:
        while (job := self._jobs.get()) is not None:
            request, future = job
            if not future.set_running_or_notify_cancel():
                continue
            self._journal.begin(worker.slot, request.row)
            worker.job = job
            try:
                try:
                    done = self._work(request)
                finally:
                    worker.job = None
                    self._journal.end(worker.slot)
            except BaseException as error:
                if not _settle(future, error):
                    return
            else:
                if not _settle(future, done):
                    return
            del job, request, future

    def _watch(self, tick: float) -> None:
        """Let the images in work grow older, and give up the threads of those over the limit."""
        with self._watching:
            now = time.monotonic()
            # A process that was suspended has not waited.
            passed, self._watched = min(now - self._watched, 2 * tick), now
            overdue: list[_Worker] = []
            for worker in self._workers:
                job = worker.job
                worker.age = worker.age + passed if job is not None and job is worker.seen else 0.0
                worker.seen = job
                if job is not None and worker.age >= self._seconds and _settle(job[1], Overdue()):
                    overdue.append(worker)
            for worker in overdue:
                self._workers.remove(worker)
                self._hung.append(worker)
            hung = sum(1 for _ in self._alive(self._hung))
            if hung > _most_hung(self._threads):
                raise TooManyHung(
                    f"{hung} images gave no result within {self._seconds:g} s each (one is "
                    f"{str(self._shown())!r}), more than the {self._threads} decoding threads: see whether their "
                    "volume answers, or allow more time with --image-timeout, and run it again"
                )
            if overdue and not self._closed:
                self._start(len(overdue))

    def _shown(self) -> object:
        job = self._hung[-1].job
        return job[0].path if job else "gone"

    def _start(self, count: int) -> None:
        """Start threads whose torch operations run alone, and leave every other thread's number as it is."""
        with _STARTING:
            default = _in_new_thread(torch.get_num_threads)
            started = threading.Barrier(count + 1)
            for _ in range(count):
                worker = _Worker(len(self._workers) + len(self._hung))
                worker.thread = threading.Thread(
                    target=self._begin, args=(worker, started), name=f"genenc-images-{worker.slot}", daemon=True
                )
                self._workers.append(worker)
                worker.thread.start()
            started.wait()
            _in_new_thread(lambda: torch.set_num_threads(default))

    def _begin(self, worker: _Worker, started: threading.Barrier) -> None:
        torch.get_num_threads()  # makes torch set this thread up now; it would overwrite the 1 later
        torch.set_num_threads(1)
        started.wait()
        self._run(worker)

    @staticmethod
    def _alive(workers: list[_Worker]) -> Iterator[threading.Thread]:
        return (worker.thread for worker in workers if worker.thread is not None and worker.thread.is_alive())


def _most_hung(threads: int) -> int:
    return max(threads, _FEWEST_HUNG)


def _settle(future: Future[LoadedImage], outcome: LoadedImage | BaseException) -> bool:
    """Give a future its outcome; return False when it had one already."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        return False
    return True


def _in_new_thread(work: Callable[[], int | None]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work() or 0))
    thread.start()
    thread.join()
    return found[0]
