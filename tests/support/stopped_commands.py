"""Commands of `genenc` that wait at a step until they are ended by a signal."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import forked

_PATIENCE = 300.0
_PROGRAM = """
import importlib, json, sys, time
from pathlib import Path
from genenc_core.cli import app
from genenc_core.encoding import cancellation

module, owner, function, passed, reached = json.loads(sys.argv[1])
sys.argv[1:] = sys.argv[2:]
if module:
    holder = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    real = getattr(holder, function)
    calls = []
    def waiting(*given, **more):
        calls.append(function)
        if len(calls) > passed:
            Path(reached).touch()
            while not cancellation.current().stopping:
                time.sleep(0.01)
        return real(*given, **more)
    setattr(holder, function, waiting)
app.build_app(None)()
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A call at which a command waits, e.g. `Step("genenc_core.run.worker", "Worker.encode", after=1)`."""

    module: str
    function: str
    after: int = 0
    """Number of calls that pass first."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """What became of a command."""

    code: int
    out: str
    told: str


Run = Callable[..., Ended]
"""Run a command, given its words; with `at=Step(...), by=signal.SIGKILL`, end it by the signal at the step."""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Return a call that runs a command in a process whose temporary folder is `tmp_path / "tmp"`."""
    (tmp_path / "tmp").mkdir()
    started: list[forked.Popen] = []
    folder = str(Path(__file__).parent)

    def run(words: Sequence[str], at: Step | None = None, by: int = 0) -> Ended:
        reached = tmp_path / uuid.uuid4().hex
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([folder, *sys.path]),
            "TMPDIR": str(tmp_path / "tmp"),
        }
        owner, _, function = at.function.rpartition(".") if at else ("", "", "")
        step = json.dumps([at and at.module, owner, function, at and at.after, str(reached)])
        process = forked.Popen(
            [sys.executable, "-c", _PROGRAM, step, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if at:
            deadline = time.monotonic() + _PATIENCE
            while not reached.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert reached.exists(), process.communicate(timeout=_PATIENCE)
            process.send_signal(by)
        out, told = process.communicate(timeout=_PATIENCE)
        return Ended(process.returncode, out, told)

    yield run
    for process in started:
        process.kill()
