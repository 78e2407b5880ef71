"""`genenc update` ended by Ctrl-C or SIGKILL at any step says so and leaves nothing; the next one continues."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forked
import pictures
from genenc_core.dataset import verify
from genenc_core.dataset.folder import DatasetFolder
from genenc_core.store.backends.objects import Root, to_root

PROGRAM = """
import sys, time
from pathlib import Path
from genenc_core.cli import app
from genenc_core.dataset import folder, update
from genenc_core.encoding import cancellation
from genenc_core.images.sources import manifest
from genenc_core.run import planning, worker

STEPS = {
    "listing": (manifest, "write_manifest"),
    "planning": (planning, "publish"),
    "encoding": (worker.Worker, "encode"),
    "version": (folder.DatasetFolder, "create_version"),
}
step, reached = sys.argv[1:3]
if step:
    owner, name = STEPS[step]
    real = getattr(owner, name)
    def paused(*given, **more):
        if step == "encoding" and given[1] == 0:
            return real(*given, **more)
        Path(reached).touch()
        while not cancellation.current().stopping:
            time.sleep(0.01)
        return real(*given, **more)
    setattr(owner, name, paused)
sys.argv[1:] = sys.argv[3:]
app.build_app(None)()
"""
"""Runs a command that waits at a step until it is stopped."""
STEPS = ("listing", "planning", "encoding", "version")
MODEL = ["--model", "tiny_models:conv", "--weights", "random:0", "--image-size", "32", "--device", "cpu"]
WORK = ["--shard-rows", "2", "--batch-size", "2", "--decode-workers", "1", "--plain", "--json"]
Ended = tuple[int, dict[str, Any], str]


@pytest.fixture
def update(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Ended]:
    """Return a call that updates a dataset in a process, ends it by a signal at a step, and returns what it said."""
    photos = pictures.write_folder(tmp_path / "photos", 6)
    (tmp_path / "tmp").mkdir()

    def run(place: Root, step: str = "", by: int = 0) -> Ended:
        reached = tmp_path / uuid.uuid4().hex
        folders = [Path(pictures.__file__).parent, Path(__file__).parent]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), *sys.path])}
        process = forked.Popen(
            [sys.executable, "-c", PROGRAM, step, str(reached), "update", str(place), str(photos), *MODEL, *WORK],
            env={**environment, "TMPDIR": str(tmp_path / "tmp")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(process.kill)
        deadline = time.monotonic() + 300
        while step and not reached.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if step:
            assert reached.exists(), process.communicate(timeout=300)
            process.send_signal(by)
        out, told = process.communicate(timeout=300)
        return process.returncode, json.loads(out or "{}"), told

    return run


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """Where the dataset is made."""
    if request.param == "local":
        return tmp_path / "dataset"
    return to_root(f"s3://{request.getfixturevalue('s3').bucket}/tests/{uuid.uuid4().hex[:12]}/dataset")


def left(tmp_path: Path) -> list[str]:
    """Return temporary folders; those of killed processes are taken for ones that were just made at first."""
    found = list((tmp_path / "tmp").iterdir())
    for folder in found:
        os.utime(folder, (1, 1))
    return sorted(folder.name for folder in found)


def assert_whole(place: Root, ended: Ended, tmp_path: Path) -> None:
    """One version with all images; each encoded once."""
    code, said, told = ended
    assert (code, said["version"], said["counts"]["rows"]) == (0, 1, 6), told
    folder = DatasetFolder(place)
    assert folder.parts() == [1]
    assert folder.part("p000001").store.committed() == {0, 1, 2}
    assert verify.verify(folder, content=True).ok
    if isinstance(place, Path):
        assert [str(path) for path in place.rglob(".*")] == []
    assert left(tmp_path) == []


@pytest.mark.slow
def test_killed_at_every_step(update: Callable[..., Ended], place: Root, tmp_path: Path) -> None:
    for step in STEPS:
        code, said, _ = update(place, step, signal.SIGKILL)
        assert (code, said) == (-signal.SIGKILL, {})
        assert any(name.startswith("genenc-update-") for name in left(tmp_path))
    assert DatasetFolder(place).versions() == []
    assert_whole(place, update(place), tmp_path)


@pytest.mark.slow
def test_interrupted_at_every_step(update: Callable[..., Ended], place: Root, tmp_path: Path) -> None:
    for step in STEPS[:3]:
        code, said, told = update(place, step, signal.SIGINT)
        assert (code, said) == (130, {"stopped": True})
        assert told.endswith("stopped: complete shards are kept; the same command continues\n")
        assert left(tmp_path) == []
    # The version is about to be made: nothing is left to stop.
    assert_whole(place, update(place, "version", signal.SIGINT), tmp_path)
