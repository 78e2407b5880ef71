"""Workers that are stopped, frozen and woken, clocks that jump, readers that keep a file open: not a byte changes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import checks
import forked
import pictures
import store_worker as small
from genenc_core.run import records, status
from genenc_core.run.folder import RunFolder
from genenc_core.store import repair, store_keys, verify

FROZEN_AT = ("stage:after", "commit:after", "promote:before-status")


def frozen_worker(root: Path, point: str) -> subprocess.Popen[str]:
    """Start a worker that wants shard 1 with bytes of its own and stops like SIGSTOP does at a point."""
    program = (
        "import os, signal, sys; from pathlib import Path; import store_worker as small\n"
        f"store = small.create(Path({str(root)!r}), observer=lambda point: point == {point!r} "
        "and os.kill(os.getpid(), signal.SIGSTOP))\n"
        "small.commit(store, 1, salt=5)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(small.__file__).parent), *sys.path])}
    worker = forked.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    while os.waitpid(worker.pid, os.WUNTRACED | os.WNOHANG) == (0, 0):
        time.sleep(0.005)
    return worker


@pytest.mark.slow
@pytest.mark.parametrize("point", FROZEN_AT)
def test_a_worker_that_wakes_after_its_shard_was_done_by_another_changes_no_byte(tmp_path: Path, point: str) -> None:
    root = tmp_path / "run"
    small.create(root)
    worker = frozen_worker(root, point)
    store = small.resume(root)
    committed_first = FROZEN_AT.index(point) >= FROZEN_AT.index("commit:after")
    record = store.record(1)
    assert record is not None
    assert record.details["salt"] == (5 if committed_first else 0)
    before = checks.ledger(store)
    os.kill(worker.pid, signal.SIGCONT)
    assert (worker.communicate(timeout=300)[1], worker.returncode) == ("", 0)
    assert checks.ledger(store) == before
    assert verify.verify_store(store, content=True).ok
    assert list(checks.litter(store.objects)) == []


@pytest.fixture
def slow_run(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., "subprocess.Popen[str]"]:
    """Return a call that starts an extraction by a slow encoder and returns after its first commit."""
    photos = pictures.write_folder(tmp_path / "photos", 120)

    def begin(model: str = "tiny_models:slow", *, commits: int = 1) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "genenc_flows.entry", "extract", str(photos), "--plain", "--model", model]
        command += ["--weights", "random:0", "--image-size", "32", "--shard-rows", "4", "--batch-size", "2"]
        folders = [Path(pictures.__file__).parent, Path(__file__).parent]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), *sys.path])}
        process = forked.Popen(
            [*command, "--device", "cpu", "--out", str(tmp_path / "run")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        request.addfinalizer(process.kill)
        sessions = tmp_path / "run" / "provenance" / "runs"
        while process.poll() is None and not (
            len(list((tmp_path / "run" / "_txn" / "commits").glob("s*.json"))) >= commits and sessions.exists()
        ):
            time.sleep(0.02)
        return process

    return begin


@pytest.mark.slow
def test_closed_terminal_leaves_whole_shards(slow_run: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    """SIGHUP ends the command at once; SIGTERM and Ctrl-C, which end it in order, are tested with the flows."""
    process = slow_run()
    process.send_signal(signal.SIGHUP)
    _, told = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGHUP, told
    assert "Traceback" not in told
    stated = zarr.open_group(tmp_path / "run" / store_keys.GROUP, mode="r")["status"][:].reshape(-1, 4)
    assert ((stated == 1).all(axis=1) | (stated == 0).all(axis=1)).all()
    assert 0 < status.run_status(RunFolder(tmp_path / "run")).committed < 10
    assert status.verify_place(tmp_path / "run", content=True).ok


@pytest.mark.slow
def test_second_interrupt_ends_hung_encoder(slow_run: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    process = slow_run("faulty_models:hangs", commits=0)
    told = ""
    for words in ("hanging", "repeat to abort immediately"):
        while words not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        process.send_signal(signal.SIGINT)
    told += process.stderr.read()
    assert process.wait(300) == 130, told
    assert "Traceback" not in told
    assert status.run_status(RunFolder(tmp_path / "run")).committed == 0


@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    root, whole = tmp_path / "run", tmp_path / "whole"
    small.resume(whole)
    store = small.create(root)
    small.commit(store, 0)
    (
        root / store_keys.STAGING / "s0000001-0123456789abcdef0123456789abcdef"
    ).mkdir()  # a living worker's, for all we know
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86400)
    store.recover()
    assert len(list((root / store_keys.STAGING).iterdir())) == 1
    small.resume(root)
    assert small.tree(root) == small.tree(whole)
    first, second = records.new_session(), records.new_session()
    assert first != second


def test_a_reader_with_an_open_file_keeps_its_bytes_over_promotion_and_repair(tmp_path: Path) -> None:
    """Objects are renamed into place and moved aside, never written in place: an open file is one version, whole."""
    store = small.create(tmp_path / "run")
    small.commit(store, 1)
    key = f"{store_keys.GROUP}/features/c.1.0"
    before = store.objects.read(key)
    with store.objects.open(key) as reader:
        first = reader.read(5)
        checks.damage(store, 1)
        repair.repair_store(store, coordinates=small.coordinates())
        small.resume(tmp_path / "run")
        assert first + reader.read() == before
    assert store.objects.read(key) == before


def test_a_group_opened_before_anything_was_committed_sees_each_shard_come(tmp_path: Path) -> None:
    store = small.create(tmp_path / "run")
    group = zarr.open_group(store.zarr_store(), mode="r")
    for shard in range(small.SHARDS):
        assert not np.asarray(group["status"][slice(*store.shard_range(shard))]).any()
        small.commit(store, shard)
        assert np.asarray(group["status"][slice(*store.shard_range(shard))]).all()
        assert list(checks.read_once(store, group)) == []
