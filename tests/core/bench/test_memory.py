"""Memory of processes together: what they share counts once."""

import subprocess
import sys
from pathlib import Path

import pytest

from genenc_core.bench import memory, suites
from genenc_core.bench.report import Options, Row

SHARED = 64 * 2**20
PROGRAM = f"""
import mmap, os, sys
shared = mmap.mmap(-1, {SHARED})
shared.write(b"x" * {SHARED})
child = os.fork()
if not child:
    grandchild = os.fork()
    shared.seek(0)
    while shared.read(2**20):
        pass
    if not grandchild:
        print("ready", flush=True)
sys.stdin.read()
"""


def test_shared_memory_counts_once_and_processes_are_told_apart() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (found,) = memory.sizes(process.pid)
    assert (len(found.children), len(found.grandchildren)) == (1, 1)
    assert SHARED <= found.total < 1.8 * SHARED
    assert min(found.driver, *found.children, *found.grandchildren) > 0
    assert memory.sizes(process.pid) == []


def test_a_runs_parts_are_told_in_words() -> None:
    found = memory.Sizes(driver=600 * 2**20, children=(50 * 2**20,), grandchildren=(20 * 2**20, 30 * 2**20))
    assert found.total == 700 * 2**20
    assert found.describe() == "driving process 600, decode server 50, each decode worker 25"


@pytest.mark.slow
def test_the_suite_looks_at_runs_with_more_and_more_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "WORKERS", (2,))
    monkeypatch.setattr(memory, "IMAGES", (8, 8))
    (table,) = suites.measure(["memory"], Options(folder=tmp_path, repeats=1, quick=True), command="c").tables
    (row,) = table.rows
    assert row.measured, row.note
    assert row.peak_bytes is not None
    assert 2**26 < row.peak_bytes < 2**33
    assert row.note.startswith("driving process ")


def test_a_system_that_does_not_tell_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(name="genenc", count=1, cpu_seconds=(1.0,), wall_seconds=(1.0,))
    monkeypatch.setattr(memory, "IMAGES", (1, 1))
    monkeypatch.setattr(memory, "measure_in_new_processes", lambda _ways, _options, **_look: [row])
    (table,) = memory.run(Options(folder=tmp_path, repeats=1, quick=True))
    assert (table.rows[0].measured, table.rows[0].note) == (False, "unknown on this system")
