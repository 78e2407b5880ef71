"""Ways measured against each other: one process each, taking turns, so that what else the machine does hits all."""

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
from genenc_core.bench import machine
from genenc_core.bench.records import Options, Row

WORKER = Path(__file__).with_name("worker.py")
READY_SECONDS = 300.0
CALL_SECONDS = 1200.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of doing a thing: `program` and `arguments` as `worker.py` takes them, under an interpreter.

    `all_counted`: the CPU seconds of all that it starts are its own or its children's.
    """

    name: str
    program: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    python: str = sys.executable
    group: str = ""
    note: str = ""
    all_counted: bool = True


class WayError(errors.GenencError):
    """A way that could not be measured; the others can."""


class Running:
    """A way's process, prepared and waiting for its turn; close it.

    What genenc and Prefect keep for their user goes into `home`; None leaves the environment as it is.
    """

    def __init__(self, way: Way, home: Path | None = None) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 closed with the process
        self._process = subprocess.Popen(
            [way.python, "-P", str(WORKER), way.program, json.dumps(way.arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
            env=None if home is None else _environment(home),
        )

    def prepared(self) -> None:
        """Return when the way is ready for its first call.

        Raises:
            WayError: it failed, or is not ready in time.
        """
        self._answer(READY_SECONDS)

    def start(self) -> None:
        """Let it do its work once, and do not wait for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()

    def cost(self) -> dict[str, float]:
        """Wait for the work that was started; return its units, CPU and wall seconds and peak bytes.

        Raises:
            WayError: it failed, or took too long.
        """
        return self._answer(CALL_SECONDS)

    def close(self) -> None:
        """End the process and all that it started."""
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
            self._said.close()

    def _answer(self, seconds: float) -> dict[str, float]:
        stream = self._process.stdout
        assert stream is not None
        if not select.select([stream], [], [], seconds)[0]:
            raise WayError(f"no answer within {seconds:.0f} s")
        line = stream.readline()
        answer = json.loads(line) if line else {"failed": f"its process ended: {self._last_words()}"}
        if "failed" in answer:
            raise WayError(str(answer["failed"]))
        return {key: float(value) for key, value in answer.items()}

    def _last_words(self) -> str:
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(self._said.tell() - 4000, 0))
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.wait()}"


@contextlib.contextmanager
def running(ways: Sequence[Way], home: Path) -> Iterator[list[Running | str]]:
    """Start the ways' processes one after the other; in place of one that fails its reason."""
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
    """Measure the ways `options.repeats` times in turn, after one call each that does not count; return their rows."""
    options.tell(f"preparing {', '.join(way.name for way in ways)}")
    with running(ways, options.folder) as started:
        found: list[list[dict[str, float]]] = [[] for _ in ways]
        for repeat in range(options.repeats + 1):
            for place in range(len(ways)):
                # Another way comes first each time: what one leaves in caches helps no other always.
                at = (place + repeat) % len(ways)
                process = started[at]
                if isinstance(process, str):
                    continue
                try:
                    cost = _one(process)
                except WayError as error:
                    started[at] = str(error)
                    continue
                if repeat:
                    found[at].append(cost)
            options.tell(f"repeat {repeat} of {options.repeats} done")
        reasons = [state if isinstance(state, str) else "" for state in started]
        return [_row(way, costs, reason) for way, costs, reason in zip(ways, found, reasons, strict=True)]


def afresh(ways: Sequence[Way], options: Options) -> list[Row]:
    """Measure the ways `options.repeats` times in turn, each in a process with nothing behind it; return their rows."""
    found: list[list[dict[str, float]]] = [[] for _ in ways]
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
                    found[at].append(_one(process))
                except WayError as error:
                    failed[at] = str(error)
        options.tell(f"repeat {repeat + 1} of {options.repeats} done")
    return [_row(way, costs, failed.get(at, "")) for at, (way, costs) in enumerate(zip(ways, found, strict=True))]


def slopes(ways: Sequence[Callable[[int], Way]], counts: tuple[int, int], options: Options) -> list[Row]:
    """Measure ways with fewer and with more units; return what a unit more costs in each."""
    rows = compare([way(count) for way in ways for count in counts], options)
    return [minus(more, less) for less, more in zip(rows[::2], rows[1::2], strict=True)]


def prepare(way: Way, options: Options) -> float:
    """Do a way's work once in a process of its own, for what it leaves behind; return what it says it did.

    Raises:
        WayError: it failed.
    """
    process = Running(way, options.folder)
    try:
        process.prepared()
        process.start()
        return process.cost()["count"]
    finally:
        process.close()


def minus(more: Row, less: Row) -> Row:
    """Return what the units cost that one row has more of than another: the fixed part of both is gone."""
    if not (more.measured and less.measured):
        return Row(name=more.name, group=more.group, note=less.note if more.measured else more.note)
    return Row(
        name=more.name,
        group=more.group,
        note=more.note,
        count=more.count - less.count,
        cpu_seconds=tuple(a - b for a, b in zip(more.cpu_seconds, less.cpu_seconds, strict=True)),
        wall_seconds=tuple(a - b for a, b in zip(more.wall_seconds, less.wall_seconds, strict=True)),
        peak_bytes=more.peak_bytes,
        foreign_cores=more.foreign_cores,
    )


def _environment(home: Path) -> dict[str, str]:
    """Return this environment with folders of its own for what is remembered, and no Prefect server but its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PREFECT_API_URL", "PREFECT_PROFILE")}
    return {**kept, "XDG_STATE_HOME": str(home / "state"), "PREFECT_HOME": str(home / "prefect")}


def _one(process: Running) -> dict[str, float]:
    """Return the cost of one call; `foreign` is how many cores others kept busy meanwhile."""
    busy = machine.busy_seconds()
    process.start()
    cost = process.cost()
    after = machine.busy_seconds()
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
        peak_bytes=int(max(cost["peak"] for cost in costs)),
        foreign_cores=round(statistics.median(foreign), 2) if foreign else None,
    )
