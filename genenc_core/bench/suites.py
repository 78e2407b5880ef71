"""Registry of suites and the runner that reports on the selected ones; suites are imported when they run."""

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from genenc_core import errors
from genenc_core.bench import machine
from genenc_core.bench.report import Options, Report, Row, Table

SUITES: Mapping[str, str] = {
    "data": "genenc_core.bench.data",
    "model": "genenc_core.bench.model",
    "end-to-end": "genenc_core.bench.end_to_end",
    "start": "genenc_core.bench.start",
    "cores": "genenc_core.bench.cores",
    "memory": "genenc_core.bench.memory",
}
"""Each module has `run(options)`, which returns or yields tables."""
ELSEWHERE = ("store", "scale", "peers")
"""Suites in the repository but not in the package: the store, scaling with run size, other tools."""


def chosen(text: str) -> list[str]:
    """Parse `all` or comma-separated suite names.

    Raises:
        InputError: an unknown suite.
    """
    names = [*SUITES] if text == "all" else [part.strip() for part in text.split(",")]
    for name in names:
        if name in ELSEWHERE:
            raise errors.InputError(
                f"--suite {name!r} is not in the package: run python tests/benchmarks/{name}.py in genenc's repository"
            )
        if name not in SUITES:
            raise errors.InputError(f"--suite {name!r} is unknown: choose all, or some of {', '.join(SUITES)}")
    return names


def measure(
    names: Sequence[str], options: Options, *, command: str, modules: Mapping[str, str] | None = None
) -> Report:
    """Run suites in sequence, each in its own scratch folder, and report the results.

    `modules`: module of each suite, if not in genenc itself.
    A suite that fails ends with a row that gives the reason, and the next one runs. Ctrl-C ends the measurement; the
    report then holds the finished tables and is marked as stopped.
    """
    began = time.perf_counter()
    tables: list[Table] = []
    stopped = False
    try:
        for name in names:
            with tempfile.TemporaryDirectory(dir=options.folder, prefix=f"{name}-") as folder:
                run: Callable[[Options], Iterable[Table]] = importlib.import_module((modules or SUITES)[name]).run
                try:
                    for table in run(replace(options, folder=Path(folder), tell=_progress(options, name, began))):
                        tables.append(table)  # noqa: PERF402 finished tables are kept on interruption
                except errors.GenencError as error:
                    tables.append(_failed(name, error))
    except KeyboardInterrupt:
        stopped = True
    seconds = round(time.perf_counter() - began, 1)
    return Report(machine=machine.describe(), command=command, seconds=seconds, tables=tuple(tables), stopped=stopped)


def failures(found: Report) -> list[str]:
    """Return descriptions of the rows whose measurement failed."""
    rows = ((table, row) for table in found.tables for row in table.rows)
    return [f"{table.name}: {row.name}: {row.note}" for table, row in rows if row.note.startswith("failed: ")]


def _failed(name: str, error: errors.GenencError) -> Table:
    row = Row(name=name, note=f"failed: {error}")
    return Table(name=name, title=f"Suite {name}", settings="The suite failed.", baselines=(), rows=(row,))


def _progress(options: Options, name: str, began: float) -> Callable[[str], None]:
    return lambda words: options.tell(f"{time.perf_counter() - began:4.0f} s  {name}: {words}")
