"""The one thread that an encoder is called on, the calls that wait for it, and threads that leave it its helpers."""

import contextlib
import contextvars
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from genenc_core import errors, host
from genenc_core.encoding import host_memory

_Result = TypeVar("_Result")
_TICK = 0.5


class Call(Generic[_Result]):
    """A call that waits for its turn on the thread, or has had it."""

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


class CallThread:
    """One thread, always the same: a compiled model's CUDA graphs belong to the thread that recorded them."""

    def __init__(self, device: torch.device) -> None:
        """`device`: where what is called computes: the thread's current one, or the host, whose memory it keeps."""
        self._closed = threading.Event()
        self._pool = _keeping_pool() if device.type == "cpu" else _pool(device)

    def submit(self, work: Callable[..., _Result], *arguments: object) -> Call[_Result]:
        """Queue a call, in a copy of the caller's context.

        Raises:
            Stopped: the thread is closed. It says nothing of what the call was for.
        """
        try:
            return Call(self._pool.submit(contextvars.copy_context().run, work, *arguments), self._closed)
        except RuntimeError as error:
            if not self._closed.is_set():
                raise
            raise _closed() from error

    def close(self) -> None:
        """Give up all calls, and end the thread after the one that was begun."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)


def alone(work: Callable[..., _Result], *arguments: object) -> _Result:
    """Return what `work` returns, on a thread that ends with it; a Ctrl-C does not wait for it.

    OpenMP gives a thread whose torch operations run in parallel helpers for as long as it lives. Once there are more of
    them than cores it lets all sleep between operations, the encoder's too: a tenth of its time.
    """
    context = contextvars.copy_context()

    def run(told: Future[_Result]) -> None:
        try:
            told.set_result(context.run(work, *arguments))
        except BaseException as error:
            told.set_exception(error)

    future: Future[_Result] = Future()
    threading.Thread(target=run, args=(future,), name="genenc-alone", daemon=True).start()
    try:
        return future.result()
    finally:
        # An exception holds this frame: through the future it would hold itself.
        del future


def _pool(device: torch.device | None = None) -> ThreadPoolExecutor:
    count = min(torch.get_num_threads(), host.cores())  # torch knows of no limit but the affinity
    given = (count, device)
    return ThreadPoolExecutor(1, thread_name_prefix="genenc-encoder", initializer=_prepare, initargs=given)


def _keeping_pool() -> ThreadPoolExecutor:
    """Return a thread that keeps the memory it frees, or any other where there is none."""
    with contextlib.ExitStack() as others, contextlib.suppress(RuntimeError):  # no more threads to be had
        for _ in range(host_memory.most_arenas()):
            pool = _pool()
            if pool.submit(host_memory.in_main_arena).result():
                host_memory.keep()
                return pool
            # It lives until one is found: the next thread would be given what this one had.
            others.callback(pool.shutdown)
    return _pool()


def _closed() -> errors.Stopped:
    return errors.Stopped("stopped: the encoder is closed")


def _prepare(count: int, device: torch.device | None) -> None:
    """Give this thread's torch operations so many threads, and make a CUDA device its current one."""
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # without it streams are left for the first device's, on which memory is taken
    torch.get_num_threads()  # makes torch set this thread up now; it would take another default later
    torch.set_num_threads(count)
