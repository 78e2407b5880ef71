"""The threads that an encoder is called on, the calls that wait for them, and threads that leave it its helpers."""

import collections
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

from genenc_core import errors, exits, host, torch_threads
from genenc_core.encoding import host_memory

_Result = TypeVar("_Result")
_TICK = 0.5


class Call(Generic[_Result]):
    """A call that waits for its turn on a thread, or has had it."""

    def __init__(self, future: Future[_Result], closed: threading.Event) -> None:
        self._future: Future[_Result] | None = future
        self._closed = closed

    def result(self) -> _Result:
        """Wait for the call and return or raise what it came to; asked for once.

        Raises:
            Stopped: the thread was closed before its turn, or meanwhile: a call that hangs holds up nobody then.
        """
        future, self._future = self._future, None
        assert future is not None, "a result is asked for once"
        try:
            while not futures.wait([future], timeout=_TICK).done:
                if self._closed.is_set():
                    raise _closed()
            return future.result()
        except CancelledError as error:
            raise _closed() from error
        finally:
            # An exception holds this frame: through the future it would hold itself, and the memory of what failed.
            del future

    def cancel(self) -> None:
        """Give the call up, unless it was begun."""
        if self._future is not None:
            self._future.cancel()


class CallThreads:
    """One thread, always the same, for a compiled model's CUDA graphs belong to the thread that recorded them.

    Or several on the host, each computing on one core: whichever is free takes the next call.
    """

    def __init__(self, device: torch.device, count: int = 1) -> None:
        """`device`: where what is called computes: the thread's current one, or the host, whose memory it keeps."""
        self._closed = threading.Event()
        each = cores() if count == 1 else 1
        on_host = device.type == "cpu"
        with torch_threads.starting():
            self._pools = _keeping_pools(count, each) if on_host else [_pool(each, device) for _ in range(count)]
            for pool in self._pools:
                pool.submit(_nothing).result()
        self._waiting: collections.deque[tuple[Future[Any], Callable[[], object]]] = collections.deque()

    def submit(self, work: Callable[..., _Result], *arguments: object) -> Call[_Result]:
        """Queue a call, in a copy of the caller's context.

        Raises:
            Stopped: the threads are closed. It says nothing of what the call was for.
        """
        future: Future[_Result] = Future()
        self._waiting.append((future, functools.partial(contextvars.copy_context().run, work, *arguments)))
        try:
            for pool in self._pools:
                pool.submit(self._take)
        except RuntimeError as error:
            if not self._closed.is_set():
                raise
            raise _closed() from error
        return Call(future, self._closed)

    def close(self) -> None:
        """Give up all calls, and end each thread after the one that it began."""
        self._closed.set()
        with contextlib.suppress(IndexError):  # a thread may take the last one
            while self._waiting:
                self._waiting.popleft()[0].cancel()
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> None:
        """Do what waits longest, unless another thread has."""
        try:
            future, work = self._waiting.popleft()
        except IndexError:
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(_as_a_failure(error))
        finally:
            # An exception holds this frame: through the future it would hold itself, and the memory of what failed.
            del future, work


class Room:
    """Where batches are computed: side by side, or one alone."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._computing = 0
        self._alone = 0
        """Batches that are, or wait to be, alone."""

    @contextlib.contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        """Wait for those that are alone; `alone`: for all, and let no other begin."""
        with self._change:
            self._alone += alone
            self._change.wait_for(lambda: not (self._computing if alone else self._alone))
            self._computing += 1
        try:
            yield
        finally:
            with self._change:
                self._computing -= 1
                self._alone -= alone
                self._change.notify_all()


def cores() -> int:
    """Return how many cores a model computes on: as many as torch takes, within this process's limits."""
    return min(torch.get_num_threads(), host.cores())  # torch knows of no limit but the affinity


def alone(work: Callable[..., _Result], *arguments: object) -> _Result:
    """Return what `work` returns, on a thread that ends with it; a Ctrl-C does not wait for it.

    OpenMP gives a thread whose torch operations run in parallel helpers for as long as it lives. Once there are more of
    them than cores it lets all sleep between operations, the encoder's too: a tenth of its time.
    """
    context = contextvars.copy_context()

    def run(told: Future[_Result]) -> None:
        try:
            with exits.guarded():
                result = context.run(work, *arguments)
            told.set_result(result)
        except BaseException as error:
            told.set_exception(_as_a_failure(error))

    future: Future[_Result] = Future()
    threading.Thread(target=run, args=(future,), name="genenc-alone", daemon=True).start()
    try:
        return future.result()
    finally:
        # An exception holds this frame: through the future it would hold itself.
        del future


def _pool(count: int, device: torch.device | None = None) -> ThreadPoolExecutor:
    given = (count, device)
    return ThreadPoolExecutor(1, thread_name_prefix="genenc-encoder", initializer=_prepare, initargs=given)


def _keeping_pools(count: int, each: int) -> list[ThreadPoolExecutor]:
    """Return threads that keep the memory they free: as many as there can be; one of any kind where there are none."""
    found: list[ThreadPoolExecutor] = []
    with contextlib.ExitStack() as others, contextlib.suppress(RuntimeError):  # no more threads to be had
        for _ in range(count * host_memory.most_arenas()):
            pool = _pool(each)
            if not pool.submit(host_memory.in_main_arena).result():
                # It lives until all are found: the next thread would be given what this one had.
                others.callback(pool.shutdown)
                continue
            host_memory.keep()
            found.append(pool)
            if len(found) == count:
                return found
        if not found:
            return [_pool(each) for _ in range(count)]
    return found or [_pool(each)]


def _as_a_failure(error: BaseException) -> Exception:
    """Return what ended a call as an error of it: a model's SystemExit must not end the command, with its exit code.

    A Ctrl-C is never raised here: Python gives it to the main thread.
    """
    if isinstance(error, Exception):
        return error
    failure = errors.EncoderError(f"the model raised {type(error).__name__}({error}), which would end the process.")
    failure.__cause__ = error
    return failure


def _closed() -> errors.Stopped:
    return errors.Stopped("stopped: the encoder is closed")


def _prepare(count: int, device: torch.device | None) -> None:
    """Give this thread's torch operations so many threads, and make a CUDA device its current one."""
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # without it streams are left for the first device's, on which memory is taken
    torch_threads.set_here(count)


def _nothing() -> None:
    """Be a new thread's first work: then it is there."""
