"""Signals that arrive while the main thread waits for a lock."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genenc_core.system import signals

PATIENCE = 60.0


@pytest.fixture
def handled() -> Iterator[threading.Event]:
    """An event that the handler of SIGTERM sets."""
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: event.set())
    yield event
    signal.signal(signal.SIGTERM, before)


def wait_for_a_lock_that_is_freed_by(event: threading.Event) -> bool:
    """Wait in the main thread, which is not interrupted by SIGTERM; return whether the event was seen meanwhile."""
    held, seen = threading.Lock(), []
    held.acquire()

    def send() -> None:
        wait_until_it_waits(threading.main_thread())
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append(event.wait(PATIENCE))
        held.release()

    # The kernel now delivers it to another thread, as if it came just before the wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    sender = threading.Thread(target=unblocked, args=(send,))
    try:
        sender.start()
        held.acquire()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        sender.join()
    return seen == [True]


def wait_until_it_waits(thread: threading.Thread) -> None:
    """Return when a thread has slept in the same instruction for a while."""
    same, last = 0, -1
    while same < 20:
        now = sys._current_frames()[thread.ident or 0].f_lasti
        state = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0]
        same, last = (same + 1 if (now, state) == (last, "S") else 0), now
        time.sleep(0.01)


def unblocked(work: object) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    assert callable(work)
    work()


def test_a_signal_ends_the_wait_for_a_lock(handled: threading.Event) -> None:
    for _ in range(3):
        with signals.handled_at_once():
            assert wait_for_a_lock_that_is_freed_by(handled)
        handled.clear()


def test_without_it_the_wait_goes_on(handled: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above could not fail."""
    monkeypatch.setitem(globals(), "PATIENCE", 1.0)
    assert not wait_for_a_lock_that_is_freed_by(handled)
    assert handled.is_set()


def test_everything_is_set_back(handled: threading.Event) -> None:
    before, others = signal.getsignal(signal.SIGURG), set(threading.enumerate())
    with signals.handled_at_once(), signals.handled_at_once():
        (started,) = set(threading.enumerate()) - others
    assert signal.getsignal(signal.SIGURG) == before
    assert not started.is_alive()
    assert signal.set_wakeup_fd(-1) == -1


def test_other_threads_and_event_loops_are_left_alone() -> None:
    def elsewhere() -> None:
        with signals.handled_at_once():
            kept.append(signal.getsignal(signal.SIGURG))

    kept: list[object] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert kept == [signal.SIG_DFL]
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    try:
        with signals.handled_at_once():
            assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL
    finally:
        assert signal.set_wakeup_fd(-1) == write
        os.close(read)
        os.close(write)
