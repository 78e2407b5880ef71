"""Pool of decode workers: assigns pieces, collects answers, and handles workers that exit or hang."""

import collections
import contextlib
import dataclasses
import itertools
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np

from genenc_core import errors, spec
from genenc_core.images.containers import kinds
from genenc_core.images.decode import load_image
from genenc_core.images.decode.limits import Limits
from genenc_core.images.load import decode_server, decode_worker
from genenc_core.images.load.decode_worker import Answer, Piece
from genenc_core.images.load.slab import Slab, anonymous_file
from genenc_core.images.sources.file_stamps import NO_STAMP

LOGGER = logging.getLogger(__name__)
PIECES_PER_WORKER = 2
"""Pieces assigned to a worker at a time: the second waits until the first is done."""
_FIRST_WORKERS = 2
_TICK = 1.0
_MIN_HUNG = 4
_MAX_KILLS = 8
"""Workers that may be killed externally while working on the same row."""
_EXTERNAL_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_STDERR_BYTES = 4096


class TooManyHung(errors.GenencError):
    """Consecutive images hang, so the images are not at fault."""


class Block(Protocol):
    """Rows that a caller waits for together."""

    slot: int
    """First slot of their pixels in the slab."""
    fault: Exception | None
    """Error that ends the wait and is not specific to an image."""
    abandoned: bool
    """Whether its caller stopped waiting for it."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for."""
        ...

    def note(self, at: int, answer: Answer) -> None:
        """Store the answer for its rows from `at` on."""
        ...

    def drop(self) -> None:
        """Release its memory; no worker writes to it any more."""
        ...


class Job:
    """Rows of a block that are assigned to a worker together."""

    def __init__(
        self,
        block: Block,
        at: int,
        paths: Sequence[str],
        members: Sequence[str],
        planned: np.ndarray,
        *,
        retry: bool = False,
    ) -> None:
        self.block = block
        self.at = at
        self.paths = paths
        self.members = members
        """As in `Piece`."""
        self.planned = planned
        self.retry = retry
        """Whether it is a single row on its second try."""
        self.killed = 0
        """How often its worker was killed externally."""

    def __len__(self) -> int:
        return len(self.paths)

    def retries(self) -> list["Job"]:
        """Return its rows one by one, for a second try."""
        return [
            Job(
                self.block,
                self.at + each,
                self.paths[each : each + 1],
                self.members[each : each + 1],
                self.planned[each : each + 1],
                retry=True,
            )
            for each in range(len(self))
        ]

    def packed(self) -> bytes:
        """Serialise to a message."""
        return Piece(self.block.slot + self.at, self.paths, self.members, self.planned).packed()


class _Worker:
    """State of a worker in the pool's process."""

    def __init__(
        self,
        index: int,
        server: decode_server.DecodeServer,
        process: int,
        connection: Connection,
        stderr: int,
        *,
        begun: int,
    ) -> None:
        self.index = index
        self.server = server
        self.process = process
        self.connection = connection
        self.stderr = stderr
        self.assigned: collections.deque[Job] = collections.deque()
        """The first one is being processed."""
        self.begun = begun
        """Last value seen of its counter of rows, which it shares with its predecessors."""
        self.started = False
        """Whether it has begun a row; on a GPU this takes seconds."""
        self.age = 0.0
        """Seconds that a caller has waited since it began its row."""

    def close(self) -> str:
        """Close its files and return the first line that its decoders wrote to stderr."""
        self.connection.close()
        output = os.pread(self.stderr, _STDERR_BYTES, 0)
        os.close(self.stderr)
        return output.decode(errors="replace").strip().partition("\n")[0][:120]


class DecodePool:
    """Decode workers of a loader, with a thread that assigns work and collects answers.

    Workers are started on demand: two, doubled each time a caller waits for images, up to `max_workers`. If encoding is
    slower than decoding, few workers compete for its cores and memory.
    """

    def __init__(
        self, slab: Slab, preprocessing: spec.Preprocessing, limits: Limits, max_workers: int, device: str | None = None
    ) -> None:
        self._slab = slab
        self._limits = limits
        self._max_workers = max_workers
        self._needed = min(_FIRST_WORKERS, max_workers)
        """Target number of workers."""
        self._grown = time.monotonic()
        self._setup = {
            "preprocessing": preprocessing.model_dump_json(),
            "limits": dataclasses.asdict(limits),
            "slots": len(slab.images),
            "workers": max_workers,
            "device": device,
            "environment": kinds.environment(),
        }
        self._queue: collections.deque[Job] = collections.deque()
        self._open: dict[int, Block] = {}
        """Submitted blocks by `id`, until they were waited for or abandoned."""
        self._workers: dict[int, _Worker] = {}
        """By the descriptor of their connection."""
        self._changed = threading.Condition()
        """Guards all state of the pool."""
        self._waiting = 0
        self._hung = 0
        """Consecutive images that hung."""
        self._checked = time.monotonic()
        self._closed = False
        self._wake, self._woken = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._thread: threading.Thread | None = None

    def submit(self, pieces: Sequence[Job]) -> None:
        """Queue the pieces of a block.

        Raises:
            RuntimeError: no thread can be started.
        """
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="genenc-images", daemon=True)
                thread.start()
                self._thread = thread
            self._open.update({id(job.block): job.block for job in pieces})
            self._queue.extend(pieces)
            self._nudge()

    def wait(self, block: Block) -> None:
        """Wait until all of a block was read.

        Raises:
            TooManyHung: consecutive images hang.
            OSError: no worker can be started, or workers are killed externally.
        """
        with self._changed:
            if not self._waiting:
                self._checked = time.monotonic()
            self._waiting += 1
            try:
                if not block.ended and self._needed < self._max_workers:
                    self._grow()
                    self._nudge()
                self._changed.wait_for(lambda: block.ended)
            finally:
                self._waiting -= 1
            self._open.pop(id(block), None)
        if block.fault is not None:
            raise block.fault

    def abandon(self, block: Block) -> None:
        """Cancel the pieces of a block that were not begun; its memory is released once no worker writes to it."""
        with self._changed:
            block.abandoned = True
            self._open.pop(id(block), None)
            self._drop_abandoned(block)

    def close(self) -> None:
        """Stop the workers and the thread."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._fail(errors.Stopped("stopped: the loader is closed"))
            self._nudge()
        if self._thread is not None:
            self._thread.join()
        for descriptor in (self._wake, self._woken):
            os.close(descriptor)

    def _grow(self) -> None:
        """Double the target number of workers."""
        self._needed, self._grown = min(2 * self._needed, self._max_workers), time.monotonic()

    def _nudge(self) -> None:
        os.write(self._woken, b"!")

    def _run(self) -> None:
        while not self._closed:
            try:
                ready = self._poll.poll(_TICK * 1000)
                with self._changed:
                    self._step(ready)
            except Exception as error:  # a worker cannot be started, or memory is short
                with self._changed:
                    self._fail(error)
        for worker in list(self._workers.values()):
            self._kill(worker)

    def _step(self, ready: Sequence[tuple[int, int]]) -> None:
        """Collect answers, check for hung workers, and assign new work."""
        for descriptor, _event in ready:
            if descriptor == self._wake:
                os.read(self._wake, 4096)
            else:
                self._receive(self._workers[descriptor])
        if time.monotonic() - self._checked >= _TICK / 10:
            self._check_hung()
        self._assign_all()

    def _assign_all(self) -> None:
        """Assign pieces to workers, idle ones first; start more workers if all are busy and pieces wait."""
        for count in range(PIECES_PER_WORKER):
            while count and self._queue and len(self._workers) < self._needed and not self._closed:
                self._assign(self._start_worker())
            for worker in [each for each in self._workers.values() if len(each.assigned) == count]:
                if not self._queue or self._closed:
                    return
                self._assign(worker)

    def _assign(self, worker: _Worker) -> None:
        message = self._queue[0].packed()
        if not worker.assigned:
            worker.age = 0.0
        worker.assigned.append(self._queue.popleft())
        with contextlib.suppress(OSError):  # it exited, which is handled when its connection ends
            worker.connection.send_bytes(message)

    def _start_worker(self) -> _Worker:
        index = next(
            number for number in itertools.count() if all(number != each.index for each in self._workers.values())
        )
        begun = int(self._slab.counters[index])
        ours, theirs = socket.socketpair()
        stderr = anonymous_file()
        with ours, theirs:
            descriptors = (theirs.fileno(), self._slab.descriptor, stderr)
            try:
                server, process = decode_server.fork({**self._setup, "worker": index}, descriptors)
            except BaseException:
                os.close(stderr)
                raise
            worker = _Worker(index, server, process, Connection(ours.detach()), stderr, begun=begun)
        self._workers[worker.connection.fileno()] = worker
        self._poll.register(worker.connection.fileno(), select.POLLIN)
        return worker

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = Answer.of(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self._handle_exit(worker)
            return
        except BaseException:  # out of memory: its answers can no longer be attributed
            self._kill(worker)
            raise
        job = worker.assigned.popleft()
        worker.age = 0.0
        self._hung = 0
        self._note(job, answer)
        if job.block.abandoned:
            self._drop_abandoned(job.block)

    def _handle_exit(self, worker: _Worker) -> None:
        """Reassign or record the jobs of a worker that crashed or was killed externally."""
        output = self._disconnect(worker)
        try:
            exited = worker.server.wait_exit(worker.process)
        except decode_server.ServerLost:
            exited = None
        assigned = list(worker.assigned)
        if not assigned:
            return
        job, rest = assigned[0], assigned[1:]
        if exited is None or -exited.code in _EXTERNAL_SIGNALS:
            job.killed += 1
            again = [job]
            if job.killed >= _MAX_KILLS:
                again = []
                job.block.fault = ChildProcessError(
                    f"{job.paths[0]!r}: its decode worker was killed externally {_MAX_KILLS} times"
                    f"{'' if exited is None else f' ({exited.name})'}, perhaps for lack of memory: free some, or use "
                    "fewer --decode-workers; --max-megapixels skips large images"
                )
                self._changed.notify_all()
        elif job.retry:
            what = f"{exited.name}{f': {output}' if output else ''}"
            self._record(job, f"the image crashes its decoder ({what}): save the file again", cause="image")
            again = []
        else:
            again = job.retries()
        self._queue.extendleft(reversed([*again, *rest]))
        self._drop_abandoned(job.block, *(each.block for each in rest))

    def _check_hung(self) -> None:
        """Age the rows in progress while a caller waits, and kill the workers of those over the time limit."""
        now = time.monotonic()
        # Time for which this process was suspended does not count.
        passed, self._checked = min(now - self._checked, 2 * _TICK), now
        if self._waiting and now - self._grown >= _TICK:
            self._grow()
        for worker in list(self._workers.values()):
            begun = int(self._slab.counters[worker.index])
            worker.age = worker.age + passed if worker.assigned and self._waiting and begun == worker.begun else 0.0
            worker.started |= begun != worker.begun
            worker.begun = begun
            limit = self._limits.seconds
            if worker.age >= (limit if worker.started else max(limit, decode_server.START_SECONDS)):
                self._kill_hung(worker)

    def _kill_hung(self, worker: _Worker) -> None:
        """Kill a hung worker, and retry or record its row."""
        job, *rest = worker.assigned
        self._kill(worker)
        again: list[Job] = []
        if job.retry:
            reason = (
                f"timed out after {self._limits.seconds:g} s, twice: save the file again, or allow more time with "
                "--image-timeout"
            )
            self._record(job, reason, cause="file")
            self._hung += 1
        else:
            LOGGER.warning("%s timed out; retrying once", job.paths[0])
            again = job.retries()
        self._queue.extendleft(reversed([*again, *rest]))
        self._drop_abandoned(job.block, *(each.block for each in rest))
        if self._hung > max(self._max_workers, _MIN_HUNG):
            raise TooManyHung(
                f"{self._hung} consecutive images timed out after {self._limits.seconds:g} s each (last: "
                f"{job.paths[0]!r}): check that their volume responds, or allow more time with --image-timeout, then "
                "run again"
            )

    def _kill(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError):
            worker.server.kill(worker.process)
        self._disconnect(worker)

    def _disconnect(self, worker: _Worker) -> str:
        """Remove a worker and close its files; return the first line of its stderr."""
        descriptor = worker.connection.fileno()
        self._poll.unregister(descriptor)
        del self._workers[descriptor]
        return worker.close()

    def _record(self, job: Job, reason: str, *, cause: load_image.Cause) -> None:
        record = np.zeros(1, decode_worker.RECORD)
        record["stamp"] = NO_STAMP
        record["height"] = record["width"] = -1
        self._note(job, Answer(decode_worker.Seconds(), record.tobytes(), {0: {"failure": reason, "cause": cause}}))

    def _note(self, job: Job, answer: Answer) -> None:
        job.block.note(job.at, answer)
        if job.block.ended:
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        """Raise an error that is not specific to an image in all waiting callers."""
        for block in self._open.values():
            if not block.ended:
                block.fault = error
        self._queue.clear()
        self._hung = 0
        self._changed.notify_all()

    def _drop_abandoned(self, *blocks: Block) -> None:
        """Release the memory of abandoned blocks that no worker writes to any more."""
        for block in {id(block): block for block in blocks}.values():
            if block.abandoned:
                self._queue = collections.deque(job for job in self._queue if job.block is not block)
                if not any(job.block is block for each in self._workers.values() for job in each.assigned):
                    block.drop()
