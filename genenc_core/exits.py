"""Exits of this process that somebody's code makes behind genenc's back: they must not look like success.

`os._exit` and C's `exit` end a process at once, with whatever exit code they are called with. A model, a factory or a
decoder that calls one of them would end a command half way with exit code 0 and no message.
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
"""Returns what is done so far and how to go on, as one sentence."""
Report = Callable[[str], None]
"""Shows an error message; the process ends after it."""
_SECONDS = 10.0
_LOCK = threading.RLock()
_GUARDS: list[tuple[State | None, Report | None]] = []
_EXIT = os._exit


@contextlib.contextmanager
def guarded(state: State | None = None, report: Report | None = None) -> Iterator[None]:
    """End the process with a message and exit code 1 where code in this block ends it; blocks may be nested.

    `state` and `report` of the innermost block that has one are used; the message goes to standard error by default.
    What cannot be intercepted is C's `_exit`. Processes forked in the block end as they like.
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
    """End the process at once, as genenc's own code may."""
    _EXIT(code)


def _python_exit(process: int) -> Any:
    def end(status: int) -> None:
        if os.getpid() == process:
            _end(f"os._exit({status!r}){_place(sys._getframe(1))}")
        _EXIT(status)

    return end


@contextlib.contextmanager
def _c_exit(process: int) -> Iterator[None]:
    """Handle C's `exit` within the block, where the C library lets handlers be taken back."""
    import ctypes  # here, for a quick `genenc --help`

    ended = False

    def handle(_nothing: object) -> None:
        if not ended and os.getpid() == process:
            _end("exit(), which a C library called")

    try:
        library = ctypes.CDLL(None)
        add, run = library.__cxa_atexit, library.__cxa_finalize
    except (OSError, AttributeError, TypeError):
        yield
        return
    handler = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(handle)
    owner = ctypes.create_string_buffer(1)  # its address tells this handler from all others
    add(handler, None, owner)
    try:
        yield
    finally:
        ended = True
        run(owner)  # calls the handler and forgets it


def _place(frame: FrameType) -> str:
    return f" in {frame.f_code.co_filename}, line {frame.f_lineno}"


def _end(call: str) -> None:
    told: list[str] = []

    def collect() -> None:
        words = next((state() for state, _ in reversed(_GUARDS) if state), "")
        told.append(f" {words[:1].upper()}{words[1:]}" if words else "")

    # On a thread with a time limit: the caller may hold a lock that is needed.
    asking = threading.Thread(target=collect, daemon=True)
    asking.start()
    asking.join(_SECONDS)
    message = (
        f"the process was ended from inside, by {call}. The code of a model, a factory or a decoder must return or "
        f"raise instead.{''.join(told)}"
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
