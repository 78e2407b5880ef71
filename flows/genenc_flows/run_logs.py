"""Logs of flow runs: the core's messages are shown, and an ordinary failure is one line, not a traceback."""

import logging

from prefect.exceptions import TerminationSignal
from prefect.settings import get_current_settings

from genenc_core import errors

CORE = "genenc_core"
ENGINES = ("prefect.engine", "prefect.flow_engine", "prefect.flow_runs", "prefect.task_runs", "prefect.task_engine")
"""Loggers by which Prefect reports the exception that ended a run."""


def prepare() -> None:
    """Set up this process's loggers; again, it changes nothing."""
    core = logging.getLogger(CORE)
    # Prefect gives extra loggers a handler, but no level, so that they would show warnings only.
    if core.level == logging.NOTSET and CORE in (get_current_settings().logging.extra_loggers or ()):
        core.setLevel(logging.INFO)
    for name in ENGINES:
        logging.getLogger(name).addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Replace the traceback of an error that says all in its message."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if isinstance(error, errors.GenencError | TerminationSignal):
        record.msg = f"{record.getMessage()}: {errors.reason(error)}"
        record.args = ()
        record.exc_info = None
    return True
