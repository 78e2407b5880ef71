"""The decode workers of a loader: who has what, what came of it, and what became of those that ended or hung."""

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
from genenc_core.images import decode_server, decode_worker, reading
from genenc_core.images.decode_worker import Answer, Piece
from genenc_core.images.limits import Limits
from genenc_core.images.slab import Slab, anonymous_file
from genenc_core.images.stamps import NO_STAMP

LOGGER = logging.getLogger(__name__)
PIECES_GIVEN = 2
"""Pieces that a worker has at a time: the second waits until the first is done."""
_TICK = 1.0
_FEWEST_HUNG = 4
_TRIES = 8
"""Workers that may be killed from outside with the same row in work."""
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_SAID = 4096


class TooManyHung(errors.GenencError):
    """One image after the other hangs: no image's fault any more."""


class Block(Protocol):
    """Rows that somebody waits for together."""

    slot: int
    """Where their pixels go in the slab."""
    fault: Exception | None
    """That ends the wait: it is of no image."""
    given_up: bool
    """Whether nobody waits for it any more."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for."""
        ...

    def note(self, at: int, answer: Answer) -> None:
        """Keep what came of its rows from `at` on."""
        ...

    def drop(self) -> None:
        """Give its memory back: no worker writes to it."""
        ...


class Work:
    """Rows of a block that a worker is given at a time."""

    def __init__(
        self, block: Block, at: int, paths: Sequence[str], planned: np.ndarray, *, alone: bool = False
    ) -> None:
        self.block = block
        self.at = at
        self.paths = paths
        self.planned = planned
        self.alone = alone
        """Whether it is one row that is tried once more."""
        self.killed = 0
        """How often its worker was killed from outside."""

    def __len__(self) -> int:
        return len(self.paths)

    def rows_alone(self) -> list["Work"]:
        """Return its rows one by one, to be tried once more."""
        return [
            Work(self.block, self.at + each, self.paths[each : each + 1], self.planned[:, each : each + 1], alone=True)
            for each in range(len(self))
        ]

    def packed(self) -> bytes:
        """Return it as a message."""
        return Piece(self.block.slot + self.at, self.paths, *self.planned).packed()


class _Worker:
    """A worker as the process that asks sees it."""

    def __init__(
        self, index: int, server: decode_server.DecodeServer, process: int, connection: Connection, said: int
    ) -> None:
        self.index = index
        self.server = server
        self.process = process
        self.connection = connection
        self.said = said
        self.given: collections.deque[Work] = collections.deque()
        """The first is in work."""
        self.begun = 0
        """Rows, when it was last looked at."""
        self.age = 0.0
        """Seconds that somebody waited since it began with its row."""

    def last_words(self) -> str:
        """Return the first line that its decoders wrote, and close everything."""
        self.connection.close()
        words = os.pread(self.said, _SAID, 0)
        os.close(self.said)
        return words.decode(errors="replace").strip().partition("\n")[0][:120]


class DecodePool:
    """The workers of a loader, and a thread that gives them work and takes what came of it."""

    def __init__(self, slab: Slab, preprocessing: spec.Preprocessing, limits: Limits, most: int) -> None:
        self._slab = slab
        self._limits = limits
        self._most = most
        self._setup = {
            "preprocessing": preprocessing.model_dump_json(),
            "limits": dataclasses.asdict(limits),
            "slots": len(slab.images),
            "workers": most,
        }
        self._queue: collections.deque[Work] = collections.deque()
        self._workers: dict[int, _Worker] = {}
        """By the descriptor of their connection."""
        self._changed = threading.Condition()
        """Held while anything here is read or changed."""
        self._waiting = 0
        self._hung = 0
        """Images that hung, one after the other."""
        self._watched = time.monotonic()
        self._closed = False
        self._wake, self._woken = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._thread: threading.Thread | None = None

    def submit(self, pieces: Sequence[Work]) -> None:
        """Queue the pieces of a block."""
        with self._changed:
            self._queue.extend(pieces)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="genenc-images", daemon=True)
                self._thread.start()
            self._nudge()

    def wait(self, block: Block) -> None:
        """Return when all of a block was read.

        Raises:
            TooManyHung: one image after the other hangs.
            OSError: there are no workers, or they are killed from outside.
        """
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: block.ended)
            finally:
                self._waiting -= 1
        if block.fault is not None:
            raise block.fault

    def give_up(self, block: Block) -> None:
        """Drop what was not begun of a block; its memory is given back when no worker writes to it."""
        with self._changed:
            block.given_up = True
            self._drop_given_up(block)

    def close(self) -> None:
        """End the workers and the thread."""
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

    def _nudge(self) -> None:
        os.write(self._woken, b"!")

    def _run(self) -> None:
        while not self._closed:
            ready = self._poll.poll(_TICK * 1000)
            with self._changed:
                try:
                    for descriptor, _event in ready:
                        if descriptor == self._wake:
                            os.read(self._wake, 4096)
                        else:
                            self._receive(self._workers[descriptor])
                    self._watch()
                    self._hand_out()
                except Exception as error:  # of a worker that cannot be started, perhaps
                    self._fail(error)
                self._changed.notify_all()
        for worker in list(self._workers.values()):
            self._kill(worker)

    def _hand_out(self) -> None:
        """Give each worker its pieces; start one more where all are busy and pieces wait."""
        while self._queue and not self._closed:
            worker = min(self._workers.values(), key=lambda each: len(each.given), default=None)
            if worker is None or (worker.given and len(self._workers) < self._most):
                worker = self._started()
            elif len(worker.given) >= PIECES_GIVEN:
                return
            work = self._queue.popleft()
            if not worker.given:
                worker.age = 0.0
            worker.given.append(work)
            with contextlib.suppress(OSError):  # it ended, which is seen by the end of its connection
                worker.connection.send_bytes(work.packed())

    def _started(self) -> _Worker:
        index = next(
            number for number in itertools.count() if all(number != each.index for each in self._workers.values())
        )
        ours, theirs = socket.socketpair()
        said = anonymous_file()
        with ours, theirs:
            asked = (theirs.fileno(), self._slab.descriptor, said)
            try:
                server, process = decode_server.fork({**self._setup, "worker": index}, asked)
            except BaseException:
                os.close(said)
                raise
            worker = _Worker(index, server, process, Connection(ours.detach()), said)
        self._workers[worker.connection.fileno()] = worker
        self._poll.register(worker.connection.fileno(), select.POLLIN)
        return worker

    def _receive(self, worker: _Worker) -> None:
        try:
            answer = Answer.of(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self._ended(worker)
            return
        work = worker.given.popleft()
        worker.age = 0.0
        self._hung = 0
        work.block.note(work.at, answer)
        self._drop_given_up(work.block)

    def _ended(self, worker: _Worker) -> None:
        """Take back what a worker had that ended by itself or from outside."""
        said = self._forget(worker)
        try:
            ending = worker.server.ending(worker.process)
        except decode_server.ServerLost:
            ending = None
        given = list(worker.given)
        if not given:
            return
        work, rest = given[0], given[1:]
        if ending is None or -ending.code in _FROM_OUTSIDE:
            work.killed += 1
            again = [work]
            if work.killed >= _TRIES:
                again = []
                work.block.fault = ChildProcessError(
                    f"{work.paths[0]!r}: its decode worker was killed from outside {_TRIES} times"
                    f"{'' if ending is None else f' ({ending.name})'}, perhaps for want of memory: free some, or give "
                    "fewer --decode-workers; --max-megapixels leaves out large images"
                )
        elif work.alone:
            what = f"{ending.name}{f': {said}' if said else ''}"
            self._record(work, f"its decoder ends the process ({what}): save the file again", cause="image")
            again = []
        else:
            again = work.rows_alone()
        self._queue.extendleft(reversed([*again, *rest]))
        self._drop_given_up(work.block, *(each.block for each in rest))

    def _watch(self) -> None:
        """Let the rows in work grow older while somebody waits, and kill the workers of those over the limit."""
        now = time.monotonic()
        # A process that was suspended has not waited.
        passed, self._watched = min(now - self._watched, 2 * _TICK), now
        for worker in list(self._workers.values()):
            begun = int(self._slab.counters[worker.index])
            worker.age = worker.age + passed if worker.given and self._waiting and begun == worker.begun else 0.0
            worker.begun = begun
            if worker.age >= self._limits.seconds:
                self._give_up(worker)

    def _give_up(self, worker: _Worker) -> None:
        """Kill a worker that hangs."""
        work, *rest = worker.given
        self._kill(worker)
        again: list[Work] = []
        if work.alone:
            reason = (
                f"gave no result within {self._limits.seconds:g} s, twice: save the file again, or allow more time "
                "with --image-timeout"
            )
            self._record(work, reason, cause="file")
            self._hung += 1
        else:
            LOGGER.warning("%s gave no result in time: it is tried once more", work.paths[0])
            again = work.rows_alone()
        self._queue.extendleft(reversed([*again, *rest]))
        self._drop_given_up(work.block, *(each.block for each in rest))
        if self._hung > max(self._most, _FEWEST_HUNG):
            raise TooManyHung(
                f"{self._hung} images, one after the other, gave no result within {self._limits.seconds:g} s each (the "
                f"last is {work.paths[0]!r}): see whether their volume answers, or allow more time with "
                "--image-timeout, and run it again"
            )

    def _kill(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError):
            worker.server.kill(worker.process)
        self._forget(worker)

    def _forget(self, worker: _Worker) -> str:
        """Close what this process has of a worker; return its last words."""
        descriptor = worker.connection.fileno()
        self._poll.unregister(descriptor)
        del self._workers[descriptor]
        return worker.last_words()

    def _record(self, work: Work, reason: str, *, cause: reading.Cause) -> None:
        record = np.zeros(1, decode_worker.RECORD)
        record["stamp"] = NO_STAMP
        record["height"] = record["width"] = -1
        work.block.note(work.at, Answer(0.0, record, {0: {"failure": reason, "cause": cause}}))

    def _fail(self, error: Exception) -> None:
        """Let all that wait have an error: it is of no image."""
        for work in [*self._queue, *(work for worker in self._workers.values() for work in worker.given)]:
            work.block.fault = work.block.fault or error
        self._queue.clear()
        self._hung = 0

    def _drop_given_up(self, *blocks: Block) -> None:
        """Give back the memory of blocks that nobody waits for and no worker writes to any more."""
        for block in {id(block): block for block in blocks}.values():
            if block.given_up:
                self._queue = collections.deque(work for work in self._queue if work.block is not block)
                if not any(work.block is block for each in self._workers.values() for work in each.given):
                    block.drop()
