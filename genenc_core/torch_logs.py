"""What torch writes to the screen of its own accord while it exports, compiles or loads: kept for the debug log."""

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator

LOGGER = logging.getLogger(__name__)

_PACKAGES = frozenset({"torch", "onnxscript", "onnx_ir"})
_lock = threading.RLock()


class _ToDebug(logging.Filter):
    """Passes a record on to our own logger at debug level, and to no other handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        LOGGER.debug("%s: %s", record.name, record.getMessage())
        return False


@contextlib.contextmanager
def without_prints() -> Iterator[None]:
    """Keep off the screen what torch prints while it exports, too; not for work beside a progress line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed), kept_back():
            yield
    finally:
        if printed.getvalue():
            LOGGER.debug("%s", printed.getvalue())


@contextlib.contextmanager
def kept_back() -> Iterator[None]:
    """Keep torch's log records and Python warnings off the screen; an error that it raises says the same, shorter.

    torch gives its loggers handlers of their own, which write to standard error whatever the program has set up.
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
