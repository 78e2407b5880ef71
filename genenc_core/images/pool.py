"""Threads that load images; one that hangs is given up and replaced, and never waited for at the end."""

import itertools
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError

from genenc_core import errors, torch_threads
from genenc_core.images.inflight import MOST_ROWS, Journal
from genenc_core.images.jobs import ENDED, RUNS, WAITS, Job, Work, Worker
from genenc_core.images.reading import Begun, LoadedImage, Request

CLOSING_SECONDS = 5.0
"""How long `close` waits for images in work."""
_FEWEST_HUNG = 4
_TICK = 1.0


class Overdue(Exception):
    """An image took longer than its limit; its thread was given up."""


class TooManyHung(errors.GenencError):
    """More images than threads hang: no image's fault any more."""


def slots(threads: int) -> int:
    """Return how many threads a pool may have at once, those given up included."""
    return 2 * threads + _most_hung(threads) + 1


class DecodePool:
    """Daemon threads that load images, each with torch operations on itself alone.

    The limit counts the time in which somebody waited for an image: while nobody does, or the whole process is
    suspended, nothing grows old.
    """

    def __init__(self, work: Work, *, threads: int, seconds: float, journal: Journal) -> None:
        self._work = work
        self._threads = threads
        self._seconds = seconds
        self._journal = journal
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._changing = threading.Lock()
        """Held while the state of a job, or what a thread has, is read and changed."""
        self._watching = threading.Lock()
        self._watched = time.monotonic()
        self._workers: list[Worker] = []
        self._hung: list[Worker] = []
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
        self._end(job, CancelledError(), only=WAITS)

    def wait(self, job: Job) -> LoadedImage:
        """Return an image once it is loaded; asked for once.

        Raises:
            Overdue: it took longer than the limit.
            TooManyHung: more threads hang than the pool has.
            OSError: as `reading.Reader.begin`.
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
            if job.state == ENDED:
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

    def _run(self, worker: Worker) -> None:
        try:
            while self._take(worker):
                self._journal.begin(worker.slot, [job.request.row for job in reversed(worker.next)])
                if not (self._begin_all(worker) and self._finish(worker)):
                    return
        except BaseException as error:  # of the pool itself, for want of memory perhaps
            for job in [*worker.jobs, *(job for job, _begun in worker.begun), *worker.next]:
                self._end(job, error)
            raise
        finally:
            self._journal.end(worker.slot)

    def _take(self, worker: Worker) -> bool:
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

    def _begin_all(self, worker: Worker) -> bool:
        """Begin with what was taken, image by image; return False when the thread was given up meanwhile."""
        while worker.next:
            with self._changing:
                job = worker.next.pop()
                if job.state != WAITS:  # given up
                    continue
                job.state, worker.jobs = RUNS, (job,)
            found: LoadedImage | Begun | BaseException
            try:
                found = self._work.begin(job.request)
            except BaseException as error:
                found = error
            with self._changing:
                if worker.given_up:
                    return False
                if isinstance(found, Begun):
                    worker.begun.append((job, found))
                worker.jobs = ()
            if not isinstance(found, Begun):
                self._end(job, found)
        return True

    def _finish(self, worker: Worker) -> bool:
        """Load what was begun, all at once; return False when the thread was given up meanwhile."""
        if not worker.begun:
            return True
        jobs, begun = zip(*worker.begun, strict=True)
        with self._changing:
            worker.jobs, worker.begun = jobs, []
        found: list[tuple[Job, LoadedImage | BaseException]]
        try:
            found = list(zip(jobs, self._work.finish(begun), strict=True))
        except BaseException as error:
            found = [(job, error) for job in jobs]
        with self._changing:
            if worker.given_up:
                return False
            worker.jobs = ()
        for job, outcome in found:
            self._end(job, outcome)
        return True

    def _end(self, job: Job, outcome: LoadedImage | BaseException, *, only: int | None = None) -> None:
        """Give a job its outcome, unless it had one already, or is not in the `only` state that counts."""
        with self._changing:
            if job.state == ENDED or only not in (None, job.state):
                return
            job.state, job.outcome = ENDED, outcome
            ended = job.ended
        if ended is not None:
            ended.set()

    def _give_up(self, worker: Worker, jobs: Sequence[Job]) -> bool:
        """Give up a thread that hangs on `jobs`, and queue what else it had; return False when it goes on after all."""
        with self._changing:
            if worker.jobs is not jobs:
                return False
            worker.given_up = True
            others = [*(job for job, _begun in worker.begun), *reversed(worker.next)]
            worker.begun, worker.next = [], []
            for job in others:
                if job.state == RUNS:
                    job.state = WAITS
        for job in jobs:
            self._end(job, Overdue())
        for job in others:
            if self._closed:
                self.cancel(job)
            else:
                self._jobs.put(job)
        return True

    def _watch(self, tick: float) -> None:
        """Let the images in work grow older, and give up the threads of those over the limit."""
        with self._watching:
            now = time.monotonic()
            # A process that was suspended has not waited.
            passed, self._watched = min(now - self._watched, 2 * tick), now
            for worker in list(self._workers):
                jobs = worker.jobs
                worker.age = worker.age + passed if jobs and jobs is worker.seen else 0.0
                worker.seen = jobs
                if jobs and worker.age >= self._seconds and self._give_up(worker, jobs):
                    self._workers.remove(worker)
                    self._hung.append(worker)
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
        jobs = self._hung[-1].jobs
        return jobs[0].request.path if jobs else "gone"

    def _start(self, count: int) -> None:
        """Start threads whose torch operations run alone."""
        with torch_threads.starting():
            started = threading.Barrier(count + 1)
            for _ in range(count):
                worker = Worker(self._free_slot())
                worker.thread = threading.Thread(
                    target=self._serve, args=(worker, started), name=f"genenc-images-{worker.slot}", daemon=True
                )
                self._workers.append(worker)
                try:
                    worker.thread.start()
                except BaseException:
                    started.abort()
                    raise
            started.wait()

    def _free_slot(self) -> int:
        """Return the first place in the journal that no thread writes to."""
        taken = {each.slot for each in (*self._workers, *self._hung) if each.thread and each.thread.is_alive()}
        return next(slot for slot in itertools.count() if slot not in taken)

    def _serve(self, worker: Worker, started: threading.Barrier) -> None:
        torch_threads.set_here(1)
        try:
            started.wait()
        except threading.BrokenBarrierError:  # another one could not be started
            return
        self._run(worker)

    @staticmethod
    def _alive(workers: list[Worker]) -> Iterator[threading.Thread]:
        return (worker.thread for worker in workers if worker.thread is not None and worker.thread.is_alive())


def _most_hung(threads: int) -> int:
    return max(threads, _FEWEST_HUNG)
