"""Torch helpers: per-thread control of intra-op threads, workarounds for bugs, control of its log output."""

import contextlib
import functools
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

# One at a time: torch.set_num_threads sets the number for its thread and also the default for new threads.
_STARTING = threading.Lock()
_FAKE_DEVICE_FIXED_IN = (2, 12)
LOGGER = logging.getLogger(__name__)

_PACKAGES = frozenset({"torch", "onnxscript", "onnx_ir"})
_lock = threading.RLock()


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Restore torch's default thread count for new threads, whatever threads started meanwhile set for themselves."""
    with _STARTING:
        default = _in_new_thread(torch.get_num_threads)
        try:
            yield
        finally:
            _in_new_thread(lambda: torch.set_num_threads(default))


def set_here(count: int) -> None:
    """Set the number of intra-op threads for the calling thread; call within `starting`."""
    torch.get_num_threads()  # forces torch to initialise this thread, which would overwrite the number later
    torch.set_num_threads(count)


def _in_new_thread(work: Callable[[], int | None]) -> int:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(work() or 0))
    thread.start()
    thread.join()
    return results[0]


@functools.cache
def prepare_fake_tensors() -> None:
    """Make fake tensors safe in any thread; call before their first use, including that in `torch.export`.

    Without a CUDA device, torch 2.11 installs a stand-in when a thread first enters a FakeTensorMode. It belongs to
    that thread but is used by all, so the process segfaults once the thread has ended. Here the first thread never
    ends; a forked process inherits its memory, which is sufficient. Later versions use one stand-in per process.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= _FAKE_DEVICE_FIXED_IN:
        return
    entered = threading.Event()
    threading.Thread(target=_enter_and_stay, args=(entered,), name="genenc-fake-device", daemon=True).start()
    entered.wait()


def _enter_and_stay(entered: threading.Event) -> None:
    try:
        with FakeTensorMode():
            pass
    finally:
        entered.set()
    threading.Event().wait()


class _ToDebug(logging.Filter):
    """Redirects records to our own logger at debug level."""

    def filter(self, record: logging.LogRecord) -> bool:
        LOGGER.debug("%s: %s", record.name, record.getMessage())
        return False


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Also suppress what torch prints during export; not for work beside a progress line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed), quiet_logs():
            yield
    finally:
        if printed.getvalue():
            LOGGER.debug("%s", printed.getvalue())


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
    """Suppress torch's log records and Python warnings; the errors that it raises say the same, shorter.

    torch attaches its own handlers to its loggers, which write to standard error whatever the program configures.
    """
    quiet = _ToDebug()
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _PACKAGES]
        handlers = [handler for name in named for handler in logging.getLogger(name).handlers]
        for handler in handlers:
            handler.addFilter(quiet)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(quiet)
