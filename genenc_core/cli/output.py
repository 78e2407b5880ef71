"""Output of the command line: errors as one paragraph, a progress line, results as text or JSON."""

import contextlib
import dataclasses
import errno
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

import typer

from genenc_core import errors, text
from genenc_core.system import exits, memory, progress_rate, signals

if TYPE_CHECKING:
    import rich.console

LONGEST_MESSAGE = 4000
ENCODING = "encoding"
"""The phase during which the image rate is measured."""
_STDOUT_ERRORS = (errno.ENOSPC, errno.EBADF)
"""Error codes that mean standard output if the error names no file."""
_MEMORY_ERRORS: list[bool] = []
"""Non-empty once an out-of-memory error was reported."""


def open_standard_streams() -> None:
    """Reopen closed standard streams, and make them able to print any file name."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next opened file would get this descriptor, and all that is printed
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def flush(code: object) -> object:
    """Flush standard output; return `code`, or another exit code if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return report_closed_stdout(error)
    return code


def report_closed_stdout(error: OSError) -> int:
    """Report that standard output cannot be written, unless it is a closed pipe; return the exit code."""
    # Otherwise the interpreter would flush the buffer again at exit, and print a traceback.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:
        return 128 + signal.SIGPIPE
    with contextlib.suppress(OSError):
        tell(f"standard output cannot be written: {error.strerror or error}", label="error:", style="bold red")
    return errors.GenencError.exit_code


def error_console() -> "rich.console.Console":
    """Return a rich console on standard error."""
    import rich.console

    return rich.console.Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def tell(words: str, *, label: str = "", style: str = "") -> None:
    """Write one paragraph to standard error after a coloured label; markup and control characters are escaped."""
    shown = text.shortened(text.printable(text.redacted(words)), LONGEST_MESSAGE)
    try:
        import rich.text

        error_console().print(rich.text.Text.assemble((label, style), " " if label else "", shown))
    except (MemoryError, ImportError):  # out of memory, which may be what the message says
        sys.stderr.write(f"{label} {shown}\n".lstrip())


def say(lines: Sequence[str]) -> None:
    """Write lines to standard output, with control characters escaped."""
    for line in lines:
        sys.stdout.write(text.printable(line) + "\n")


def say_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output: aligned on a terminal, tab-separated otherwise."""
    import rich.console
    import rich.table
    import rich.text

    lines = [[text.printable(cell) for cell in row] for row in rows]
    console = rich.console.Console(highlight=False, emoji=False)
    if not console.is_terminal:
        sys.stdout.write("".join("\t".join(line) + "\n" for line in (headings, *lines)))
        return
    table = rich.table.Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for line in lines:
        table.add_row(*map(rich.text.Text, line))
    console.print(table)


def say_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    sys.stdout.write(text.json_document(value) + "\n")


@contextlib.contextmanager
def report_errors(*, as_json: bool = False) -> Iterator[None]:
    """Turn user errors into one paragraph on standard error and an exit code.

    With `as_json`, also print a JSON document, so that a script always gets one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            with exits.guarded(report=lambda message: _show_error(message, as_json=as_json)):
                yield
    except errors.GenencError as error:
        # A library that failed to load for lack of memory must not be reported as a missing model or a damaged file.
        cause = memory.lacking_cause(error) if isinstance(error, errors.InputError | errors.StoreError) else None
        fail(*(_out_of_memory(cause) if cause else (str(error), error.exit_code)), as_json=as_json)
    except ValueError as error:
        import pydantic  # imported late to keep `genenc --help` fast; a ValidationError is a ValueError

        if not isinstance(error, pydantic.ValidationError):
            raise
        from genenc_core.run import parameters

        fail(parameters.wrong_options(error, flags=True), errors.InputError.exit_code, as_json=as_json)
    except OSError as error:
        if error.errno == errno.EPIPE or (error.filename is None and error.errno in _STDOUT_ERRORS):
            raise
        fail(*(_out_of_memory(error) if memory.is_lacking(error) else _os_error(error)), as_json=as_json)
    except KeyboardInterrupt:
        fail("stopped", errors.Stopped.exit_code, as_json=as_json)
    except Exception as error:
        cause = memory.lacking_cause(error)
        if cause is None:
            raise
        fail(*_out_of_memory(cause), as_json=as_json)


def ran_out_of_memory() -> bool:
    """Return whether an out-of-memory error was reported."""
    return bool(_MEMORY_ERRORS)


def _out_of_memory(error: BaseException) -> tuple[str, int]:
    """Return the message and exit code for an out-of-memory error."""
    _MEMORY_ERRORS.append(True)
    return memory.describe(error), errors.GenencError.exit_code


def _os_error(error: OSError) -> tuple[str, int]:
    """Return the message and exit code for an operating system error."""
    if isinstance(error, errors.UnsafeFileError):
        return error.sentence, errors.StoreError.exit_code
    if error.errno == errno.ENOENT and not error.filename and not _has_working_directory():
        return "the working directory was deleted; change into one that exists", errors.InputError.exit_code
    if error.errno == errno.ENOENT and "temporary directory" in str(error.strerror):
        return f"{error.strerror}: set TMPDIR to a folder that can be written", errors.GenencError.exit_code
    where = f"{text.shortened(repr(error.filename), 300)}: " if error.filename else ""
    said = f"{where}{error.strerror or error}"
    if error.errno == errno.ENAMETOOLONG:
        return f"{said}; give a shorter one", errors.InputError.exit_code
    return f"{said}; fix the disk, mount or permissions, then rerun the command", errors.GenencError.exit_code


def _has_working_directory() -> bool:
    try:
        return bool(Path.cwd())
    except OSError:
        return False


def fail(words: str, code: int, *, as_json: bool = False) -> None:
    """Print an error and exit."""
    _show_error(words, code, as_json=as_json)
    raise typer.Exit(code)


def _show_error(words: str, code: int = errors.GenencError.exit_code, *, as_json: bool) -> None:
    if as_json:
        say_json({"error": text.redacted(words), "exit_code": code})
    tell(words, label="error:", style="bold red")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    if category.__module__.startswith("genenc_core"):
        tell(str(message), label="warning:", style="yellow")


class ProgressLine:
    """Progress line: images done, failures, images per second and time left; silent unless stderr is a terminal.

    Rate and time left are those of the last minute; before the first images, the current phase is shown.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        import rich.progress
        import rich.text

        line = self

        class RateColumn(rich.progress.ProgressColumn):
            """Rendered at every refresh, so that the rate also drops during a stall."""

            def render(self, task: rich.progress.Task) -> rich.text.Text:  # noqa: ARG002
                return rich.text.Text(line.words)

        self._console = error_console()
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("images "),
            RateColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._pace = progress_rate.Pace(clock=clock)
        self._phase = "reading the options"
        self._left = self._before = self._failed = 0
        self._task = self._progress.add_task(self._phase, total=None)
        self._lock = threading.RLock()

    def __enter__(self) -> "ProgressLine":
        self._progress.start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._progress.stop()

    def plan(self, to_do: int, rows: int) -> None:
        """Set how many of the run's rows are to be encoded."""
        with self._lock:
            self._left, self._before = to_do, rows - to_do
            self._progress.update(self._task, total=to_do)
            self._show()

    def phase(self, words: str) -> None:
        """Set the current phase; the rate counts from the start of `encoding`."""
        with self._lock:
            self._phase = words
            if words == ENCODING:
                self._pace.start()
            self._show()

    def rows(self, done: int, failed: int) -> None:
        """Count rows that were stored or failed."""
        with self._lock:
            self._failed += failed
            self._left -= done + failed
            self._pace.add(done + failed)
            self._progress.update(self._task, advance=done + failed)
            self._show()

    @property
    def words(self) -> str:
        """The text after the count: `1.7 images/s, 40 s left, 2 failed`."""
        rate, left = self._pace.per_second, self._pace.seconds_for(max(self._left, 0))
        parts = [] if rate is None else [f"{rate:.1f} images/s"]
        if left is not None and self._left > 0:
            parts.append(f"{progress_rate.duration(left)} left")
        return ", ".join([*parts, f"{self._failed} failed"] if parts or self._failed else [])

    def _show(self) -> None:
        done = f" ({self._before} done before)" if self._before and self._phase == ENCODING else ""
        self._progress.update(self._task, description=self._phase + done)


@contextlib.contextmanager
def stop_on_signal(stop: Any) -> Iterator[None]:
    """Call `stop` on the first Ctrl-C or SIGTERM; raise KeyboardInterrupt on the second."""
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        tell(f"{name}: stopping after the current batch, complete shards are kept; repeat to abort immediately")
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with signals.handled_at_once():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
