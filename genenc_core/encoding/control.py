"""How a caller watches and stops running work, without the work knowing who watches."""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator

from genenc_core import errors


def _nobody(_first: int, _second: int) -> None:
    """Take a progress report that nobody reads."""


def _unheard(_words: str) -> None:
    """Take a phase that nobody reads."""


class Control:
    """A stop request and listeners for progress; shared by all threads of one command.

    `on_plan(to_do, all)` tells the rows of this session and of the run; `on_rows(done, failed)` what was just added;
    `on_phase(words)` what begins now, such as `loading the model`.
    """

    def __init__(
        self,
        *,
        on_plan: Callable[[int, int], None] = _nobody,
        on_rows: Callable[[int, int], None] = _nobody,
        on_phase: Callable[[str], None] = _unheard,
    ) -> None:
        self.on_plan = on_plan
        self.on_rows = on_rows
        self.on_phase = on_phase
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask the work to end within one batch."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether the end was asked for."""
        return self._stop.is_set()

    def checkpoint(self) -> None:
        """Raise `Stopped` when the end was asked for; called between batches."""
        if self.stopping:
            raise errors.Stopped("stopped on request: only whole shards are stored")


_current: contextvars.ContextVar[Control | None] = contextvars.ContextVar("genenc_control", default=None)


def current() -> Control:
    """Return the control that the caller set up, or one that nobody holds."""
    return _current.get() or Control()


@contextlib.contextmanager
def ensure() -> Iterator[Control]:
    """Give the work in this context one control to look at: the caller's, or a new one."""
    with use(current()) as control:
        yield control


@contextlib.contextmanager
def use(control: Control) -> Iterator[Control]:
    """Make `control` the one that work in this context, and in threads that copy it, looks at."""
    token = _current.set(control)
    try:
        yield control
    finally:
        _current.reset(token)
