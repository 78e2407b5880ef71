"""Progress reports and cancellation of running work, independent of the caller."""

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator

from genenc_core import errors


def _ignore_counts(_first: int, _second: int) -> None:
    """Ignore a progress report."""


def _ignore_phase(_description: str) -> None:
    """Ignore a phase."""


class Control:
    """Stop request and progress listeners, shared by all threads of one command.

    `on_plan(to_do, all)` receives the rows of this session and of the run; `on_rows(done, failed)` the rows just
    added; `on_phase(description)` what begins now, such as `loading the model`.
    """

    def __init__(
        self,
        *,
        on_plan: Callable[[int, int], None] = _ignore_counts,
        on_rows: Callable[[int, int], None] = _ignore_counts,
        on_phase: Callable[[str], None] = _ignore_phase,
    ) -> None:
        self.on_plan = on_plan
        self.on_rows = on_rows
        self.on_phase = on_phase
        self.began = time.perf_counter()
        """Start of the command, by `time.perf_counter`."""
        self._stop = threading.Event()

    def stop(self) -> None:
        """Request that the work stops within one batch."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested."""
        return self._stop.is_set()

    def raise_if_cancelled(self) -> None:
        """Raise `Stopped` if a stop was requested; called between batches."""
        if self.stopping:
            raise errors.Stopped("stopped on request: only complete shards are stored")


_current: contextvars.ContextVar[Control | None] = contextvars.ContextVar("genenc_control", default=None)


def current() -> Control:
    """Return the control that the caller set, or a new one that nothing listens to."""
    return _current.get() or Control()


@contextlib.contextmanager
def ensure() -> Iterator[Control]:
    """Use one control for the work in this context: the caller's, or a new one."""
    with use(current()) as control:
        yield control


@contextlib.contextmanager
def use(control: Control) -> Iterator[Control]:
    """Set the control for work in this context, and in threads that copy it."""
    token = _current.set(control)
    try:
        yield control
    finally:
        _current.reset(token)
