"""Interleaved measurement of alternatives, one process each, so that other load on the machine affects all alike."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from genenc_core import errors
from genenc_core.bench.report import Options, Row
from genenc_core.system import proc

WORKER = Path(__file__).with_name("worker.py")
READY_SECONDS = 300.0
CALL_SECONDS = 1200.0
POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One measured alternative: `program` and `arguments` as `worker.py` takes them, and the interpreter.

    `all_counted`: whether the CPU seconds of all processes that it starts can be measured.
    """

    name: str
    program: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    python: str = sys.executable
    group: str = ""
    note: str = ""
    all_counted: bool = True


class WayError(errors.GenencError):
    """One way could not be measured; the others are unaffected."""


class Running:
    """A way's process, prepared and waiting for its turn; must be closed.

    User state of genenc and Prefect goes into `home`; None leaves the environment unchanged.
    """

    def __init__(self, way: Way, home: Path | None = None) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 closed with the process
        self._process = subprocess.Popen(
            [way.python, "-P", str(WORKER), way.program, json.dumps(way.arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
            env=None if home is None else _environment(home),
        )

    def prepared(self) -> None:
        """Wait until the way is ready for its first call.

        Raises:
            WayError: it failed or timed out.
        """
        self._answer(READY_SECONDS)

    def start(self) -> None:
        """Start one call without waiting for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def cost(self) -> dict[str, float]:
        """Wait for the started call and return its cost as reported by `worker.py`.

        Raises:
            WayError: it failed or timed out.
        """
        return self._answer(CALL_SECONDS)

    def poll(self, sample: Callable[[int], None]) -> None:
        """Call `sample` with the process number repeatedly until the call is done."""
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], POLL_SECONDS)[0]:
            sample(self._process.pid)

    def close(self) -> None:
        """Terminate the process and everything that it started."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=20)
        finally:  # a second Ctrl-C, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._stderr.close()

    def _answer(self, seconds: float) -> dict[str, float]:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], seconds)[0]:
            raise WayError(f"no answer within {seconds:.0f} s")
        line = stream.readline()
        answer = json.loads(line) if line else {"failed": f"its process ended: {self._last_error_line()}"}
        if "failed" in answer:
            raise WayError(str(answer["failed"]))
        return {key: float(value) for key, value in answer.items()}

    def _last_error_line(self) -> str:
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(self._stderr.tell() - 4000, 0))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.wait()}"


@contextlib.contextmanager
def running(ways: Sequence[Way], home: Path) -> Iterator[list[Running | str]]:
    """Start the ways' processes in sequence; yield each process, or the reason why it failed."""
    with contextlib.ExitStack() as stack:
        started: list[Running | str] = []
        for way in ways:
            process = Running(way, home)
            stack.callback(process.close)
            try:
                process.prepared()
                started.append(process)
            except WayError as error:
                started.append(str(error))
        yield started


def compare(ways: Sequence[Way], options: Options) -> list[Row]:
    """Measure the ways `options.repeats` times in turn, after one warm-up call each; return their rows."""
    options.tell(f"preparing {', '.join(way.name for way in ways)}")
    with running(ways, options.folder) as started:
        costs_of: list[list[dict[str, float]]] = [[] for _ in ways]
        for repeat in range(options.repeats + 1):
            for place in range(len(ways)):
                # Rotate the order, so that no way always profits from the caches of another.
                at = (place + repeat) % len(ways)
                process = started[at]
                if isinstance(process, str):
                    continue
                try:
                    cost = _measure_call(process)
                except WayError as error:
                    started[at] = str(error)
                    continue
                if repeat:
                    costs_of[at].append(cost)
            options.tell(f"repeat {repeat} of {options.repeats} done")
        reasons = [state if isinstance(state, str) else "" for state in started]
        return [_row(way, costs, reason) for way, costs, reason in zip(ways, costs_of, reasons, strict=True)]


def measure_in_new_processes(
    ways: Sequence[Way], options: Options, *, poll: Callable[[int], None] | None = None
) -> list[Row]:
    """Measure the ways `options.repeats` times in turn, each repeat in a new process; return their rows.

    `poll` is called repeatedly with the process number while a process works.
    """
    costs_of: list[list[dict[str, float]]] = [[] for _ in ways]
    failed: dict[int, str] = {}
    for repeat in range(options.repeats):
        for place in range(len(ways)):
            at = (place + repeat) % len(ways)
            if at in failed:
                continue
            with running([ways[at]], options.folder) as (process,):
                try:
                    if isinstance(process, str):
                        raise WayError(process)
                    costs_of[at].append(_measure_call(process, poll))
                except WayError as error:
                    failed[at] = str(error)
        options.tell(f"repeat {repeat + 1} of {options.repeats} done")
    return [_row(way, costs, failed.get(at, "")) for at, (way, costs) in enumerate(zip(ways, costs_of, strict=True))]


def slopes(ways: Sequence[Callable[[int], Way]], counts: tuple[int, int], options: Options) -> list[Row]:
    """Measure ways at two unit counts and return the marginal cost per unit of each."""
    rows = compare([way(count) for way in ways for count in counts], options)
    return [difference(more, less) for less, more in zip(rows[::2], rows[1::2], strict=True)]


def prepare(way: Way, options: Options) -> float:
    """Run a way once in a separate process for its side effects; return its unit count.

    Raises:
        WayError: the way failed.
    """
    process = Running(way, options.folder)
    try:
        process.prepared()
        process.start()
        return process.cost()["count"]
    finally:
        process.close()


def difference(more: Row, less: Row) -> Row:
    """Return the difference of two rows: the cost of the additional units, without the fixed costs."""
    if not (more.measured and less.measured):
        return Row(name=more.name, group=more.group, note=less.note if more.measured else more.note)
    return Row(
        name=more.name,
        group=more.group,
        note=more.note,
        count=more.count - less.count,
        cpu_seconds=tuple(a - b for a, b in zip(more.cpu_seconds, less.cpu_seconds, strict=True)),
        wall_seconds=tuple(a - b for a, b in zip(more.wall_seconds, less.wall_seconds, strict=True)),
        driver_seconds=tuple(a - b for a, b in zip(more.driver_seconds, less.driver_seconds, strict=True)),
        peak_bytes=more.peak_bytes,
        foreign_cores=more.foreign_cores,
    )


def _environment(home: Path) -> dict[str, str]:
    """Return this environment with separate state folders and without an external Prefect server."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_PROFILE")}
    return {**kept, "XDG_STATE_HOME": str(home / "state"), "PREFECT_HOME": str(home / "prefect")}


def _measure_call(process: Running, poll: Callable[[int], None] | None = None) -> dict[str, float]:
    """Return the cost of one call; `foreign` is the number of cores that other processes used meanwhile."""
    busy = proc.busy_seconds()
    process.start()
    if poll is not None:
        process.poll(poll)
    cost = process.cost()
    after = proc.busy_seconds()
    if busy is not None and after is not None:
        cost["foreign"] = max(after - busy - cost["cpu"], 0.0) / max(cost["wall"], 0.01)
    return cost


def _row(way: Way, costs: Sequence[Mapping[str, float]], failed: str) -> Row:
    if failed:
        return Row(name=way.name, group=way.group, note=f"failed: {failed}")
    foreign = [cost["foreign"] for cost in costs if "foreign" in cost]
    return Row(
        name=way.name,
        group=way.group,
        note=way.note,
        count=costs[0]["count"],
        cpu_seconds=tuple(round(cost["cpu"], 6) for cost in costs if way.all_counted),
        wall_seconds=tuple(round(cost["wall"], 6) for cost in costs),
        driver_seconds=tuple(round(cost["driver"], 6) for cost in costs),
        peak_bytes=int(max(cost["peak"] for cost in costs)),
        foreign_cores=round(statistics.median(foreign), 2) if foreign else None,
    )
