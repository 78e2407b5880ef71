"""Threads that load images; one that hangs is given up and replaced, and never waited for at the end."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import torch

from genenc_core import errors
from genenc_core.images.inflight import MOST_ROWS, Journal
from genenc_core.images.reading import LoadedImage, Request

CLOSING_SECONDS = 5.0
"""How long `close` waits for images in work."""
_FEWEST_HUNG = 4
_TICK = 1.0
_WAITS, _RUNS, _ENDED = range(3)

# torch.set_num_threads also sets a process-wide default, so only one pool at a time may start its threads.
_STARTING = threading.Lock()


class Overdue(Exception):
    """An image took longer than its limit; its thread was given up."""


class TooManyHung(errors.GenencError):
    """More images than threads hang: no image's fault any more."""


class Job:
    """One image to load, and what became of it: a future that costs little, of which few are waited for."""

    __slots__ = ("ended", "outcome", "request", "state")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.state = _WAITS
        self.outcome: LoadedImage | BaseException | None = None
        self.ended: threading.Event | None = None
        """Made when somebody waits."""


class _Worker:
    """One thread: what it works on, since when, and what it does next."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.job: Job | None = None
        self.next: list[Job] = []
        """Last first. Its thread's own; whoever gives the thread up may read it."""
        self.seen: Job | None = None
        self.age = 0.0
        self.thread: threading.Thread | None = None


def slots(threads: int) -> int:
    """Return how many threads a pool may have at once, those given up included."""
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
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._changing = threading.Lock()
        """Held while a job's state is read and changed."""
        self._watching = threading.Lock()
        self._watched = time.monotonic()
        self._workers: list[_Worker] = []
        self._hung: list[_Worker] = []
        self._closed = False
        self._start(threads)

    def submit(self, request: Request) -> Job:
        """Queue one image."""
        job = Job(request)
        self._jobs.put(job)
        if self._closed:  # nobody may be left to take it
            self.cancel(job)
        return job

    def cancel(self, job: Job) -> None:
        """Give an image up, unless it was begun."""
        self._end(job, CancelledError(), only=_WAITS)

    def wait(self, job: Job) -> LoadedImage:
        """Return an image once it is loaded; asked for once.

        Raises:
            Overdue: it took longer than the limit.
            TooManyHung: more threads hang than the pool has.
            OSError: as `reading.load`.
            CancelledError: it was given up.
        """
        self.wait_for_end(job)
        outcome, job.outcome = job.outcome, None
        assert outcome is not None, "an image is asked for once"
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def wait_for_end(self, job: Job) -> None:
        """Wait until an image is loaded, failed or given up; what came of it is not told.

        Raises:
            TooManyHung: more threads hang than the pool has.
        """
        with self._changing:
            if job.state == _ENDED:
                return
            ended = job.ended = job.ended or threading.Event()
        tick = min(_TICK, self._seconds / 4)
        while not ended.wait(tick):
            self._watch(tick)

    def close(self) -> bool:
        """End the threads; return whether all of them did, so that none touches anything any more."""
        with self._watching:  # what is watched meanwhile could be queued again behind the end
            self._closed = True
            while True:
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if job is not None:
                    self.cancel(job)
            for worker in self._workers:
                for job in list(worker.next):
                    self.cancel(job)
            for _worker in self._workers:
                self._jobs.put(None)
        end = time.monotonic() + CLOSING_SECONDS
        for thread in self._alive(self._workers):
            thread.join(max(end - time.monotonic(), 0))
        return not any(self._alive([*self._workers, *self._hung]))

    def _run(self, worker: _Worker) -> None:
        try:
            while self._take(worker):
                self._journal.begin(worker.slot, [job.request.row for job in reversed(worker.next)])
                while worker.next:
                    if not self._do(worker, worker.next.pop()):
                        return
        except BaseException as error:  # of the pool itself, for want of memory perhaps
            for job in worker.next:
                self._end(job, error)
            raise
        finally:
            self._journal.end(worker.slot)

    def _take(self, worker: _Worker) -> bool:
        """Wait for work, and take some: more where much is waiting, for each time costs. Return False at the end.

        What is taken is done in its order, and waits for a slow image before it.
        """
        try:
            job = self._jobs.get_nowait()
        except queue.Empty:
            self._journal.end(worker.slot)
            job = self._jobs.get()
        while job is not None:
            worker.next.append(job)
            if len(worker.next) == MOST_ROWS or self._jobs.qsize() < 2 * self._threads * len(worker.next):
                break
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
        else:
            if worker.next:
                self._jobs.put(None)  # another time
        worker.next.reverse()
        return bool(worker.next)

    def _do(self, worker: _Worker, job: Job) -> bool:
        """Load one image; return False when the thread was given up meanwhile, and must touch nothing more."""
        if not self._begin(job):
            return True
        worker.job = job
        try:
            try:
                done = self._work(job.request)
            finally:
                worker.job = None
        except BaseException as error:
            return self._end(job, error)
        return self._end(job, done)

    def _begin(self, job: Job) -> bool:
        """Return whether the job is the caller's: nobody has begun it or given it up."""
        with self._changing:
            mine = job.state == _WAITS
            if mine:
                job.state = _RUNS
        return mine

    def _end(self, job: Job, outcome: LoadedImage | BaseException, *, only: int | None = None) -> bool:
        """Give a job its outcome; return False when it had one already, or is not in the `only` state that counts."""
        with self._changing:
            if job.state == _ENDED or only not in (None, job.state):
                return False
            job.state, job.outcome = _ENDED, outcome
            ended = job.ended
        if ended is not None:
            ended.set()
        return True

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
                if job is not None and worker.age >= self._seconds and self._end(job, Overdue()):
                    overdue.append(worker)
            for worker in overdue:
                self._workers.remove(worker)
                self._hung.append(worker)
                for job in reversed(worker.next):
                    if self._closed:
                        self.cancel(job)
                    else:
                        self._jobs.put(job)
            hung = sum(1 for _ in self._alive(self._hung))
            if hung > _most_hung(self._threads):
                raise TooManyHung(
                    f"{hung} images gave no result within {self._seconds:g} s each (one is "
                    f"{str(self._shown())!r}), more than the {self._threads} decoding threads: see whether their "
                    "volume answers, or allow more time with --image-timeout, and run it again"
                )
            # Threads that were too many have perhaps come back since, and theirs are still missing.
            self._workers = [worker for worker in self._workers if worker.thread is None or worker.thread.is_alive()]
            if len(self._workers) < self._threads and not self._closed:
                self._start(self._threads - len(self._workers))

    def _shown(self) -> object:
        job = self._hung[-1].job
        return job.request.path if job else "gone"

    def _start(self, count: int) -> None:
        """Start threads whose torch operations run alone, and leave every other thread's number as it is."""
        with _STARTING:
            default = _in_new_thread(torch.get_num_threads)
            started = threading.Barrier(count + 1)
            for _ in range(count):
                worker = _Worker(self._free_slot())
                worker.thread = threading.Thread(
                    target=self._serve, args=(worker, started), name=f"genenc-images-{worker.slot}", daemon=True
                )
                self._workers.append(worker)
                worker.thread.start()
            started.wait()
            _in_new_thread(lambda: torch.set_num_threads(default))

    def _free_slot(self) -> int:
        """Return the first place in the journal that no thread writes to."""
        taken = {each.slot for each in (*self._workers, *self._hung) if each.thread and each.thread.is_alive()}
        return next(slot for slot in itertools.count() if slot not in taken)

    def _serve(self, worker: _Worker, started: threading.Barrier) -> None:
        torch.get_num_threads()  # makes torch set this thread up now; it would overwrite the 1 later
        torch.set_num_threads(1)
        started.wait()
        self._run(worker)

    @staticmethod
    def _alive(workers: list[_Worker]) -> Iterator[threading.Thread]:
        return (worker.thread for worker in workers if worker.thread is not None and worker.thread.is_alive())


def _most_hung(threads: int) -> int:
    return max(threads, _FEWEST_HUNG)


def _in_new_thread(work: Callable[[], int | None]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work() or 0))
    thread.start()
    thread.join()
    return found[0]
