"""The suites by name, and a report of those that are asked for; a suite's module is imported when it runs."""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from genenc_core import errors
from genenc_core.bench import machine
from genenc_core.bench.records import Options, Report, Row, Table

SUITES: Mapping[str, str] = {
    "data": "genenc_core.bench.data",
    "model": "genenc_core.bench.model",
    "store": "genenc_core.bench.store",
    "end-to-end": "genenc_core.bench.end_to_end",
    "start": "genenc_core.bench.start",
    "scale": "genenc_core.bench.scale",
    "peers": "genenc_core.bench.peers",
}
"""Each module has `run(options)`, which returns or yields tables."""


def chosen(text: str) -> list[str]:
    """Read `all` or names with commas between.

    Raises:
        InputError: an unknown suite.
    """
    names = [*SUITES] if text == "all" else [part.strip() for part in text.split(",")]
    for name in names:
        if name not in SUITES:
            raise errors.InputError(f"--suite {name!r} is unknown: give all, or some of {', '.join(SUITES)}")
    return names


def measure(names: Sequence[str], options: Options, *, command: str) -> Report:
    """Run suites one after the other, each in a folder of its own, and return what they found.

    A suite that fails ends with a row that says why, and the next goes on. A Ctrl-C ends all; the report then holds the
    tables that were done, and says so.
    """
    began = time.perf_counter()
    tables: list[Table] = []
    stopped = False
    try:
        for name in names:
            with tempfile.TemporaryDirectory(dir=options.folder, prefix=f"{name}-") as folder:
                run: Callable[[Options], Iterable[Table]] = importlib.import_module(SUITES[name]).run
                try:
                    for table in run(replace(options, folder=Path(folder), tell=_told(options, name, began))):
                        tables.append(table)  # noqa: PERF402 what is done is kept when the next is interrupted
                except errors.GenencError as error:
                    tables.append(_failed(name, error))
    except KeyboardInterrupt:
        stopped = True
    seconds = round(time.perf_counter() - began, 1)
    return Report(machine=machine.describe(), command=command, seconds=seconds, tables=tuple(tables), stopped=stopped)


def failures(found: Report) -> list[str]:
    """Return the rows that could not be measured though they should have been."""
    rows = ((table, row) for table in found.tables for row in table.rows)
    return [f"{table.name}: {row.name}: {row.note}" for table, row in rows if row.note.startswith("failed: ")]


def _failed(name: str, error: errors.GenencError) -> Table:
    row = Row(name=name, note=f"failed: {error}")
    return Table(name=name, title=f"The suite {name}", settings="It could not go on.", baselines=(), rows=(row,))


def _told(options: Options, name: str, began: float) -> Callable[[str], None]:
    return lambda words: options.tell(f"{time.perf_counter() - began:4.0f} s  {name}: {words}")
