"""What the command line says: errors as one paragraph, progress on a terminal, results for people or as JSON."""

import contextlib
import dataclasses
import errno
import os
import re
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

from genenc_core import errors, exits, memory, pace, text

if TYPE_CHECKING:
    import rich.console

LONGEST_MESSAGE = 4000
ENCODING = "encoding"
"""The phase whose images make the rate."""
_OF_OUTPUT = (errno.ENOSPC, errno.EBADF)
"""Without the name of a file: standard output's."""
_LACKED: list[bool] = []
"""Not empty once memory was lacking."""


def open_standard_streams() -> None:
    """Make standard streams usable that are closed, and able to show any name of a file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened gets its number, and whatever is printed
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        getattr(sys, name).reconfigure(errors="backslashreplace")


def flushed(code: object) -> object:
    """Write what is still to be written; return the exit code, another one when it cannot be."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return tell_lost_output(error)
    return code


def tell_lost_output(error: OSError) -> int:
    """Say that standard output takes nothing more, unless its reader has simply left; return the exit code."""
    # What is left in the buffer would be tried again, and told as a traceback, when the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:
        return 128 + signal.SIGPIPE
    with contextlib.suppress(OSError):
        tell(f"standard output cannot be written: {error.strerror or error}", label="error:", style="bold red")
    return errors.GenencError.exit_code


def error_console() -> "rich.console.Console":
    """Return the console on standard error."""
    import rich.console

    return rich.console.Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def tell(words: str, *, label: str = "", style: str = "") -> None:
    """Write one paragraph to standard error, after a coloured label; nothing in it is markup or steers a terminal."""
    shown = text.shortened(text.printable(text.redacted(words)), LONGEST_MESSAGE)
    try:
        import rich.text

        error_console().print(rich.text.Text.assemble((label, style), " " if label else "", shown))
    except (MemoryError, ImportError):  # where memory is short, and the message says so
        sys.stderr.write(f"{label} {shown}\n".lstrip())


def say(lines: Sequence[str]) -> None:
    """Write lines to standard output; control characters in them are shown, not sent."""
    for line in lines:
        sys.stdout.write(text.printable(line) + "\n")


def say_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to standard output: drawn on a terminal, with tabs between the columns to anything else."""
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
def errors_as_words(*, as_json: bool = False) -> Iterator[None]:
    """Turn the errors that users can cause into one paragraph on standard error and an exit code.

    With `as_json` standard output gets one document too, so that a script always finds one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            with exits.guarded(report=lambda message: _show_error(message, as_json=as_json)):
                yield
    except errors.GenencError as error:
        # A library that could not be loaded is not a model that does not exist, nor a damaged file.
        cause = memory.lacking_cause(error) if isinstance(error, errors.InputError | errors.StoreError) else None
        fail(*(_lacking(cause) if cause else (str(error), error.exit_code)), as_json=as_json)
    except ValueError as error:
        import pydantic  # a ValidationError is a ValueError; `genenc --help` is quicker without it

        if not isinstance(error, pydantic.ValidationError):
            raise
        problems = "; ".join(_problem(dict(item)) for item in error.errors())
        fail(problems, errors.InputError.exit_code, as_json=as_json)
    except OSError as error:
        if error.errno == errno.EPIPE or (error.filename is None and error.errno in _OF_OUTPUT):
            raise
        fail(*(_lacking(error) if memory.is_lacking(error) else _fault(error)), as_json=as_json)
    except KeyboardInterrupt:
        fail("stopped", errors.Stopped.exit_code, as_json=as_json)
    except Exception as error:
        cause = memory.lacking_cause(error)
        if cause is None:
            raise
        fail(*_lacking(cause), as_json=as_json)


def memory_lacked() -> bool:
    """Whether an error was for want of memory."""
    return bool(_LACKED)


def _lacking(error: BaseException) -> tuple[str, int]:
    """Return what to say of an error for want of memory, and the exit code."""
    _LACKED.append(True)
    said = text.shortened(" ".join(str(error).split()), 300)
    return f"{memory.LACKING} ({said})" if said else memory.LACKING, errors.GenencError.exit_code


def _fault(error: OSError) -> tuple[str, int]:
    """Return what the system refused, in words, and the exit code."""
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


def _problem(item: dict[str, Any]) -> str:
    """Return one wrong option in the words of the command line."""
    option = f"--{str(item['loc'][0]).replace('_', '-')}" if item["loc"] else "options"
    if item["type"] == "literal_error":
        expected = str(item["ctx"]["expected"])
        near = text.nearest(str(item["input"]), re.findall(r"'([^']*)'", expected))
        return f"{option} {item['input']!r} is unknown: give {expected}{near and '; '}{near}"
    if item["type"] == "string_unicode":
        return f"{option} {item['input']!r} holds bytes that are not UTF-8: rename the file or folder, or link to it"
    if item["type"] == "value_error":
        return f"{option} {item['input']!r} cannot be used: {item['ctx']['error']}"
    said = str(item["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    if item["type"] == "tuple_type":
        said = 'a list, such as ["a", "b"]'
    return f"{option} {item['input']!r} cannot be used: it should be {said}"


def fail(words: str, code: int, *, as_json: bool = False) -> None:
    """Write an error and leave."""
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
    """Images done, failures, images per second and time left; nothing where standard error is no terminal.

    Rate and time left are those of the last minute; before the first images it says what is being done.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        import rich.progress
        import rich.text

        line = self

        class Told(rich.progress.ProgressColumn):
            """Rendered anew at every refresh, so that the rate sinks in a stall, too."""

            def render(self, task: rich.progress.Task) -> rich.text.Text:  # noqa: ARG002
                return rich.text.Text(line.words)

        self._console = error_console()
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("images "),
            Told(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._pace = pace.Pace(clock=clock)
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
        """Tell how many of the run's rows are to do."""
        with self._lock:
            self._left, self._before = to_do, rows - to_do
            self._progress.update(self._task, total=to_do)
            self._show()

    def phase(self, words: str) -> None:
        """Tell what begins now; the rate counts from the beginning of `encoding`."""
        with self._lock:
            self._phase = words
            if words == ENCODING:
                self._pace.start()
            self._show()

    def rows(self, done: int, failed: int) -> None:
        """Add rows that were stored or failed."""
        with self._lock:
            self._failed += failed
            self._left -= done + failed
            self._pace.add(done + failed)
            self._progress.update(self._task, advance=done + failed)
            self._show()

    @property
    def words(self) -> str:
        """What stands behind the count: `1.7 images/s, 40 s left, 2 failed`."""
        rate, left = self._pace.per_second, self._pace.seconds_for(max(self._left, 0))
        told = [] if rate is None else [f"{rate:.1f} images/s"]
        if left is not None and self._left > 0:
            told.append(f"{pace.duration(left)} left")
        return ", ".join([*told, f"{self._failed} failed"] if told or self._failed else [])

    def _show(self) -> None:
        done = f" ({self._before} done before)" if self._before and self._phase == ENCODING else ""
        self._progress.update(self._task, description=self._phase + done)


@contextlib.contextmanager
def stop_on_signal(stop: Any) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C or SIGTERM; a second one interrupts at once."""
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        tell(f"{name}: ending at the next batch, whole shards are kept; once more to abort immediately")
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
