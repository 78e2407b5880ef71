"""Threads that call an encoder, with their queue of calls, and helpers that keep OpenMP workers free for it."""

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

from genenc_core import errors
from genenc_core.system import exits, host_memory, limits, torch_compat

_Result = TypeVar("_Result")
_TICK = 0.5


class Call(Generic[_Result]):
    """A call that is queued, running or done on a thread."""

    def __init__(self, future: Future[_Result], closed: threading.Event) -> None:
        self._future: Future[_Result] | None = future
        self._closed = closed

    def result(self) -> _Result:
        """Wait for the call and return its result or raise its exception; may be called once.

        Raises:
            Stopped: the thread was closed before or during the call, so that a hung call does not block its caller.
        """
        future, self._future = self._future, None
        assert future is not None, "result() may be called only once"
        try:
            while not futures.wait([future], timeout=_TICK).done:
                if self._closed.is_set():
                    raise _closed()
            return future.result()
        except CancelledError as error:
            raise _closed() from error
        finally:
            # Break the reference cycle exception -> frame -> future, which would keep the failed batch in memory.
            del future

    def cancel(self) -> None:
        """Cancel the call, unless it was begun."""
        if self._future is not None:
            self._future.cancel()


class CallThreads:
    """One dedicated thread, since a compiled model's CUDA graphs are bound to the thread that recorded them.

    On the host there may be several, each computing on one core; the first free one takes the next call.
    """

    def __init__(self, device: torch.device, count: int = 1) -> None:
        """Start the threads; `device` becomes their current CUDA device, or on the host they keep freed memory."""
        self._closed = threading.Event()
        each = cores() if count == 1 else 1
        on_host = device.type == "cpu"
        with torch_compat.starting():
            self._pools = _main_arena_pools(count, each) if on_host else [_pool(each, device) for _ in range(count)]
            for pool in self._pools:
                pool.submit(_noop).result()
        self._waiting: collections.deque[tuple[Future[Any], Callable[[], object]]] = collections.deque()

    def submit(self, work: Callable[..., _Result], *arguments: object) -> Call[_Result]:
        """Queue a call, in a copy of the caller's context.

        Raises:
            Stopped: the threads are closed.
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
        """Cancel all calls, and stop each thread after the one it has begun."""
        self._closed.set()
        with contextlib.suppress(IndexError):  # a thread may take the last one concurrently
            while self._waiting:
                self._waiting.popleft()[0].cancel()
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> None:
        """Run the call that has waited longest, unless another thread took it."""
        try:
            future, work = self._waiting.popleft()
        except IndexError:
            return
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(_as_failure(error))
        finally:
            # Break the reference cycle exception -> frame -> future, which would keep the failed batch in memory.
            del future, work


class ComputeLock:
    """Shared or exclusive lock on the computation of batches."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._computing = 0
        self._exclusive = 0
        """Batches that hold the lock exclusively, or wait to."""

    @contextlib.contextmanager
    def hold(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the lock; exclusive requests take precedence over shared ones."""
        with self._change:
            self._exclusive += exclusive
            self._change.wait_for(lambda: not (self._computing if exclusive else self._exclusive))
            self._computing += 1
        try:
            yield
        finally:
            with self._change:
                self._computing -= 1
                self._exclusive -= exclusive
                self._change.notify_all()


def cores() -> int:
    """Return the number of cores that a model computes on: torch's threads, within this process's limits."""
    return min(torch.get_num_threads(), limits.cores())  # torch respects only the affinity


def run_in_thread(work: Callable[..., _Result], *arguments: object) -> _Result:
    """Run `work` on a temporary thread and return its result; Ctrl-C does not wait for it.

    OpenMP keeps the workers of a thread with parallel torch operations until that thread ends. Once there are more of
    them than cores, all sleep between operations, including the encoder's, which costs a tenth of its time.
    """
    context = contextvars.copy_context()

    def run(outcome: Future[_Result]) -> None:
        try:
            with exits.guarded():
                result = context.run(work, *arguments)
            outcome.set_result(result)
        except BaseException as error:
            outcome.set_exception(_as_failure(error))

    future: Future[_Result] = Future()
    threading.Thread(target=run, args=(future,), name="genenc-alone", daemon=True).start()
    try:
        return future.result()
    finally:
        # Break the reference cycle exception -> frame -> future.
        del future


def _pool(count: int, device: torch.device | None = None) -> ThreadPoolExecutor:
    initargs = (count, device)
    return ThreadPoolExecutor(1, thread_name_prefix="genenc-encoder", initializer=_prepare, initargs=initargs)


def _main_arena_pools(count: int, each: int) -> list[ThreadPoolExecutor]:
    """Return up to `count` threads that keep the memory they free, in malloc's main arena, or else other threads."""
    kept: list[ThreadPoolExecutor] = []
    with contextlib.ExitStack() as others, contextlib.suppress(RuntimeError):  # no more threads can be started
        for _ in range(count * host_memory.max_arenas()):
            pool = _pool(each)
            if not pool.submit(host_memory.in_main_arena).result():
                # Kept alive until all are found, since the next thread would reuse its arena.
                others.callback(pool.shutdown)
                continue
            host_memory.keep()
            kept.append(pool)
            if len(kept) == count:
                return kept
        if not kept:
            return [_pool(each) for _ in range(count)]
    return kept or [_pool(each)]


def _as_failure(error: BaseException) -> Exception:
    """Convert the exception of a call to an `Exception`, so that a model's SystemExit does not end the command.

    KeyboardInterrupt never occurs here, since Python raises it in the main thread.
    """
    if isinstance(error, Exception):
        return error
    failure = errors.EncoderError(f"the model raised {type(error).__name__}({error}), which would exit the process.")
    failure.__cause__ = error
    return failure


def _closed() -> errors.Stopped:
    return errors.Stopped("stopped: the encoder is closed")


def _prepare(count: int, device: torch.device | None) -> None:
    """Set the number of torch threads and the current CUDA device of this thread."""
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # otherwise some streams and memory are created on the first device
    torch_compat.set_here(count)


def _noop() -> None:
    """No-op that forces a thread to start."""
