"""Ways in processes of their own: their costs are counted whole, and one that fails leaves the others alone."""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from genenc_core.bench import machine, measure, worker
from genenc_core.bench.measure import Way
from genenc_core.bench.report import Options
from genenc_core.system import proc

PROGRAM = '''
import contextlib, os, pathlib, subprocess, sys, time

@contextlib.contextmanager
def noisy(log):
    """Print, count calls in a file, and leave a line when it ends."""
    print("said while preparing")
    os.system("echo said by a child")
    path = pathlib.Path(log)
    def once():
        print("said at work")
        with path.open("a") as file:
            file.write("call ")
        return 4
    yield once
    with path.open("a") as file:
        file.write("end")

@contextlib.contextmanager
def failing(at):
    calls = []
    def once():
        calls.append(0)
        if len(calls) == at:
            raise ValueError("no more")
        return 1
    yield once

@contextlib.contextmanager
def paced(units):
    now = [0.0]
    time.perf_counter = lambda: now[0]
    def once():
        now[0] += 0.05 * units
        return units
    yield once

@contextlib.contextmanager
def dying():
    yield lambda: os._exit(3)

@contextlib.contextmanager
def unprepared():
    raise ImportError("this tool is broken")
    yield

@contextlib.contextmanager
def parent(log):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(log).write_text(str(child.pid))
    yield lambda: 1
'''


@pytest.fixture
def way(tmp_path: Path) -> Callable[..., Way]:
    """Return a way of the program above."""
    path = tmp_path / "ways.py"
    path.write_text(PROGRAM)
    return lambda name, **given: Way(name=name, program=f"{path}:{name}", arguments=given)


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(folder=tmp_path, repeats=3)


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 300
    while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_way_warms_up_then_repeats(way: Callable[..., Way], options: Options, tmp_path: Path) -> None:
    (row,) = measure.compare([way("noisy", log=str(tmp_path / "log"))], options)
    assert (tmp_path / "log").read_text() == "call call call call end"
    assert (row.count, len(row.cpu_seconds), len(row.wall_seconds)) == (4, 3, 3)
    assert row.measured
    assert row.note == ""
    assert row.peak_bytes is not None
    assert 2**20 < row.peak_bytes < 2**28


def test_no_cpu_seconds_where_processes_escape(way: Callable[..., Way], options: Options, tmp_path: Path) -> None:
    given = dataclasses.replace(way("noisy", log=str(tmp_path / "log")), all_counted=False)
    (row,) = measure.compare([given], options)
    assert (row.measured, row.cpu_seconds, len(row.wall_seconds)) == (True, (), 3)


def test_afresh_each_call_is_a_processs_first(way: Callable[..., Way], options: Options, tmp_path: Path) -> None:
    given = way("noisy", log=str(tmp_path / "log"))
    row, bad, unprepared = measure.measure_in_new_processes([given, way("failing", at=1), way("unprepared")], options)
    assert (tmp_path / "log").read_text() == "call end" * 3
    assert (row.count, len(row.cpu_seconds), len(row.wall_seconds)) == (4, 3, 3)
    assert (bad.measured, bad.note) == (False, "failed: ValueError: no more")
    assert (unprepared.measured, unprepared.note) == (False, "failed: ImportError: this tool is broken")


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("failing", {"at": 1}, "failed: ValueError: no more"),
        ("failing", {"at": 3}, "failed: ValueError: no more"),
        ("dying", {}, "failed: its process ended: exit code 3"),
        ("unprepared", {}, "failed: ImportError: this tool is broken"),
        ("missing", {}, "failed: AttributeError: module 'ways' has no attribute 'missing'"),
    ],
)
def test_what_fails_is_a_row_that_says_why_and_the_others_are_measured(
    way: Callable[..., Way], options: Options, name: str, given: dict[str, int], words: str
) -> None:
    bad, good = measure.compare([way(name, **given), way("failing", at=100)], options)
    assert not bad.measured
    assert bad.note == words
    assert good.measured


def test_what_a_way_started_ends_with_it(way: Callable[..., Way], tmp_path: Path) -> None:
    measure.prepare(way("parent", log=str(tmp_path / "log")), Options(folder=tmp_path))
    assert_ends(int((tmp_path / "log").read_text()))


@pytest.mark.slow
def test_a_running_childs_cpu_seconds_count_and_count_once_when_it_has_ended() -> None:
    before = worker.tree_seconds()
    code = "import sys, time\nwhile time.process_time() < 0.3: pass\nprint('done', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = worker.tree_seconds() - before
        assert child.pid in list(proc.descendants())
    ended = worker.tree_seconds() - before
    assert running > 0.27
    assert running - 0.03 < ended < 2 * running


def test_nothing_of_the_users_is_written_to(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://somewhere")
    seen = tmp_path / "seen.py"
    seen.write_text(
        "import contextlib, os, pathlib\n@contextlib.contextmanager\ndef names():\n"
        "    names = ('XDG_STATE_HOME', 'PREFECT_HOME', 'PREFECT_API_URL')\n"
        "    pathlib.Path(__file__).with_suffix('.txt').write_text(' '.join(map(str, map(os.environ.get, names))))\n"
        "    yield lambda: 1\n"
    )
    measure.prepare(Way(name="names", program=f"{seen}:names"), options)
    assert (tmp_path / "seen.txt").read_text() == f"{tmp_path / 'state'} {tmp_path / 'prefect'} None"
    assert os.environ["PREFECT_API_URL"] == "http://somewhere"


def test_the_parent_of_all_ways_stays_small() -> None:
    """A child's peak is never below what its parent holds when it starts it."""
    code = (
        "import sys; from genenc_core.bench import suites, machine; import importlib; machine.describe(); "
        "[importlib.import_module(name) for name in suites.SUITES.values()]; "
        "print([name for name in ('torch', 'prefect', 'zarr', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_machine_is_described_without_names_of_users_or_hosts() -> None:
    found = machine.describe()
    assert found["torch"] != "-"
    assert os.uname().nodename not in " ".join(found.values())
    assert machine.version("no-such-package") == "-"


def test_a_second_interrupt_while_a_way_is_ended_leaves_no_process(
    way: Callable[..., Way], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = measure.Running(way("parent", log=str(tmp_path / "log")))
    running.prepared()
    wait, asked = running._process.wait, []

    def interrupted(timeout: float | None = None) -> int:
        asked.append(timeout)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return wait(timeout)

    monkeypatch.setattr(running._process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        running.close()
    assert running._process.returncode is not None
    assert_ends(int((tmp_path / "log").read_text()))


@pytest.mark.slow
def test_a_slope_is_what_a_unit_more_costs(way: Callable[..., Way], options: Options) -> None:
    """Under the way's own name; one half that fails leaves no figures."""
    ways = [
        lambda count: way("paced", units=count),
        lambda count: way("paced", units=1) if count == 1 else way("dying"),
    ]
    good, bad = measure.slopes(ways, (1, 9), options)
    assert (good.name, good.count, len(good.wall_seconds)) == ("paced", 8.0, 3)
    assert good.wall_seconds == pytest.approx([8 * 0.05] * 3)
    assert not bad.measured
    assert bad.note.startswith("failed: ")
