"""`genenc probe` ended by SIGKILL or Ctrl-C at any step leaves nothing wrong; again, it ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import forked
import pictures
from genenc_core import api
from genenc_core.run import status
from genenc_core.run.folder import RunFolder
from genenc_core.store import store_keys
from genenc_core.store.backends.objects import Objects, Root, open_objects, to_root

PROGRAM = """
import sys, time
from pathlib import Path
from genenc_core.cli import app
from genenc_core.encoding import cancellation
from genenc_core.probing import planning as probing
from genenc_core.run import planning, probe_source
from genenc_core.store import run_store, transaction

STEPS = {
    "matching": (probing, "_listed"),
    "planning": (planning, "create_store"),
    "reading": (probe_source.Source, "read"),
    "staged": (transaction.Attempt, "commit"),
    "committed": (run_store.RunStore, "_finish"),
    "promoted": (transaction, "clean"),
}
step, reached = sys.argv[1:3]
if step:
    owner, name = STEPS[step]
    real = getattr(owner, name)
    calls = []
    def paused(*given, **more):
        calls.append(name)
        if step not in ("matching", "planning") and len(calls) == 1:
            return real(*given, **more)  # one shard is stored
        Path(reached).touch()
        while not cancellation.current().stopping:
            time.sleep(0.01)
        return real(*given, **more)
    setattr(owner, name, paused)
sys.argv[1:] = sys.argv[3:]
app.build_app(None)()
"""
"""Runs a command that waits at a step until it is stopped."""
STEPS = ("matching", "planning", "reading", "staged", "committed", "promoted")
PRODUCTS = ("probes=spatial_point(cell)", "pool=global_avg_pool")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run with maps, and labels of its images."""
    photos = pictures.write_folder(tmp_path / "photos", 20)
    (tmp_path / "labels.csv").write_text(
        "image,point,x,y\n" + "".join(f"img_{at:03d}.png,nose,{5 + 3 * at},20\n" for at in range(20))
    )
    small = {"model": "tiny_models:conv", "weights": "random:0", "image_size": "32", "device": "cpu", "shard_rows": 2}
    api.extract(
        str(photos), out=str(tmp_path / "source"), products=["maps=none@float32"], trust=True, decode_workers=1, **small
    )
    return tmp_path / "source"


@pytest.fixture
def probe(tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Run:
    """Return a call that probes in a process, ends it by a signal at a step, and returns its code and what it said."""
    (tmp_path / "tmp").mkdir()

    def run(place: Root, step: str = "", by: int = 0) -> tuple[int, str]:
        reached = tmp_path / uuid.uuid4().hex
        path = os.pathsep.join([str(Path(pictures.__file__).parent), *sys.path])
        command = ["probe", str(source), "--points", str(tmp_path / "labels.csv"), "--out", str(place), "--plain"]
        products = [word for product in PRODUCTS for word in ("--product", product)]
        process = forked.Popen(
            [sys.executable, "-c", PROGRAM, step, str(reached), *command, *products],
            env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(process.kill)
        deadline = time.monotonic() + 120
        while step and not reached.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if step:
            assert reached.exists(), process.communicate(timeout=60)
            process.send_signal(by)
        _, told = process.communicate(timeout=120)
        return process.returncode, told

    return run


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """Where the probe set is made."""
    if request.param == "local":
        return tmp_path / "probes"
    return to_root(f"s3://{request.getfixturevalue('s3').bucket}/tests/{uuid.uuid4().hex[:12]}/probes")


def stored(root: Root) -> dict[str, bytes]:
    """Return the objects of a probe set's group."""
    objects: Objects = open_objects(root)
    return {name: objects.read(f"{store_keys.GROUP}/{name}") for name, _ in sorted(objects.walk(store_keys.GROUP))}


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assert_whole(probe: Run, place: Root, source: Path, tmp_path: Path) -> None:
    assert probe(place)[0] == 0
    assert probe(tmp_path / "uninterrupted")[0] == 0
    assert stored(place) == stored(tmp_path / "uninterrupted")
    report = status.verify_run(RunFolder(place), content=True)
    assert (report.problems, report.pending, report.unpromoted) == ((), (), ())
    if isinstance(place, Path):
        assert open_objects(place).names(store_keys.STAGING) == []
        assert [str(path) for path in place.rglob(".*")] == []


@pytest.mark.slow
def test_killed_at_every_step(probe: Run, place: Root, source: Path, tmp_path: Path) -> None:
    before = files(source)
    for step in STEPS:
        assert probe(place, step, signal.SIGKILL)[0] == -signal.SIGKILL, step
        if step not in ("matching", "planning"):
            assert status.verify_run(RunFolder(place)).problems == (), step
    assert_whole(probe, place, source, tmp_path)
    assert files(source) == before


@pytest.mark.slow
def test_interrupted_at_every_step(probe: Run, source: Path, tmp_path: Path) -> None:
    place = tmp_path / "probes"
    for step in ("matching", "planning", "reading", "staged"):
        code, told = probe(place, step, signal.SIGINT)
        assert code == 130, told
        assert told.startswith("stopped: ") or "\nstopped: " in told
    assert_whole(probe, place, source, tmp_path)
