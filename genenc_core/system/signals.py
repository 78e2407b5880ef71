"""Signals that are handled at once, also while the main thread waits for a lock."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator

_WAKES = (0.05, 0.5)
"""The main thread is woken so many seconds after a signal, and again so many after that."""
_END = b"\0"


@contextlib.contextmanager
def handled_at_once() -> Iterator[None]:
    """Wake the main thread after every signal in this block, so that its Python handler runs.

    Python runs handlers in the main thread, between two bytecodes. A signal that arrives just before that thread waits
    for a lock, or that the kernel delivers to another thread, does not end the wait: Ctrl-C would go unnoticed until
    the work is done. A thread therefore reads of every signal from Python's wakeup descriptor and interrupts the main
    thread's wait. Does nothing outside the main thread, or where an event loop uses the descriptor.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    woken, waking = socket.socketpair()
    with woken, waking:
        waking.setblocking(False)
        other = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        if other != -1:
            signal.set_wakeup_fd(other)
            yield
            return
        before = signal.signal(signal.SIGURG, lambda _number, _frame: None)
        watcher = threading.Thread(target=_wake_main, args=(woken,), name="genenc-signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            waking.send(_END)
            watcher.join()
            signal.signal(signal.SIGURG, before)


def _wake_main(woken: socket.socket) -> None:
    """Interrupt the main thread's wait after every signal, until `_END` is read."""
    main = threading.main_thread().ident
    assert main is not None
    wakes: list[float] = []
    while True:
        woken.settimeout(wakes[0] if wakes else None)
        try:
            numbers = woken.recv(64)
        except TimeoutError:
            del wakes[0]
            signal.pthread_kill(main, signal.SIGURG)
            continue
        if _END in numbers:
            return
        if set(numbers) != {signal.SIGURG}:
            wakes = list(_WAKES)
