"""Guards against third-party code that exits the process, so that it never looks like success.

`os._exit` and C's `exit` end a process at once with the given exit code. A model, a factory or a decoder that calls one
of them would end a command halfway, with exit code 0 and no message.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from genenc_core import errors, text

State = Callable[[], str]
"""Returns one sentence on what is done so far and how to continue."""
Report = Callable[[str], None]
"""Shows an error message before the process ends."""
_STATE_TIMEOUT = 10.0
_LOCK = threading.RLock()
_GUARDS: list[tuple[State | None, Report | None]] = []
_EXIT = os._exit


@contextlib.contextmanager
def guarded(state: State | None = None, report: Report | None = None) -> Iterator[None]:
    """Turn process exits from code in this block into a message and exit code 1; blocks may be nested.

    The innermost `state` and `report` are used; the message goes to standard error by default. C's `_exit` cannot be
    intercepted. Processes forked in the block are not affected.
    """
    guard = (state, report)
    with _LOCK:
        if not _GUARDS:
            os._exit = _python_exit(os.getpid())
        _GUARDS.append(guard)
    try:
        with _c_exit(os.getpid()) if "torch" in sys.modules else contextlib.nullcontext():
            yield
    finally:
        with _LOCK:
            del _GUARDS[max(index for index, each in enumerate(_GUARDS) if each is guard)]
            if not _GUARDS:
                os._exit = _EXIT


def leave(code: int) -> NoReturn:
    """Exit the process at once, bypassing the guard; for genenc's own code."""
    _EXIT(code)


def _python_exit(process: int) -> Any:
    def end(status: int) -> None:
        if os.getpid() == process:
            _end(f"os._exit({status!r}){_place(sys._getframe(1))}")
        _EXIT(status)

    return end


@contextlib.contextmanager
def _c_exit(process: int) -> Iterator[None]:
    """Handle C's `exit` within the block, if the C library can unregister handlers."""
    import ctypes  # imported here to keep `genenc --help` fast

    ended = False

    def handle(_nothing: object) -> None:
        if not ended and os.getpid() == process:
            _end("exit(), called by a C library")

    try:
        library = ctypes.CDLL(None)
        add, run = library.__cxa_atexit, library.__cxa_finalize
    except (OSError, AttributeError, TypeError):
        yield
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(handle)
    owner = ctypes.create_string_buffer(1)  # its address identifies this handler
    add(handler, None, owner)
    try:
        yield
    finally:
        ended = True
        run(owner)  # calls and unregisters the handler


def _place(frame: FrameType) -> str:
    return f" in {frame.f_code.co_filename}, line {frame.f_lineno}"


def _end(call: str) -> None:
    progress: list[str] = []

    def collect() -> None:
        sentence = next((state() for state, _ in reversed(_GUARDS) if state), "")
        progress.append(f" {sentence[:1].upper()}{sentence[1:]}" if sentence else "")

    # In a thread with a timeout: the caller may hold a lock that `state` needs.
    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(_STATE_TIMEOUT)
    message = (
        f"the process was terminated from within by {call}. Code of a model, factory or decoder must return or raise "
        f"instead.{''.join(progress)}"
    )
    report = next((report for _, report in reversed(_GUARDS) if report), _write)
    with contextlib.suppress(BaseException):
        report(message)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    _EXIT(errors.GenencError.exit_code)


def _write(message: str) -> None:
    shown = text.printable(text.redacted(message))
    os.write(2, f"error: {shown}\n".encode(errors="backslashreplace"))
