"""An image that hangs or kills its decoder costs its own row, never the run; workers that are killed cost nothing."""

import contextlib
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import forked
import hostile_images
from genenc_core import spec
from genenc_core.images.decode import decode, limits
from genenc_core.images.load import decode_pool, decode_server, loader
from genenc_core.images.sources import image_source, manifest
from loading import Row, fork_workers, iter_rows, own_time

__all__ = ["fork_workers"]
SQUARE = spec.Preprocessing(height=24, width=32, fit="crop")
ALLOWED = limits.Limits(accept_changed=True)


@pytest.fixture
def listed(folder: Path, tmp_path: Path) -> manifest.Manifest:
    """Twelve readable images."""
    return manifest.write_manifest(tmp_path / "m.parquet", image_source.open_source(str(folder)))


def poison(listed: manifest.Manifest, word: bytes, *rows: int) -> None:
    for row in rows:
        with Path(listed.read(row, row + 1).paths[0]).open("ab") as file:
            file.write(word)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fork_workers: Callable[[], None]) -> None:
    """Make the hostile decoder that of the workers."""
    hostile_images.install(monkeypatch, tmp_path / "hanging")
    fork_workers()


def workers_of(images: loader.ImageLoader) -> list[int]:
    return [worker.process for worker in list(images._pool._workers.values())]


@pytest.mark.slow
@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize("workers", [1, 3])
def test_an_image_that_hangs_or_ends_its_worker_is_a_row(listed: manifest.Manifest, workers: int) -> None:
    """All others are as without it, and the reason says the signal or the limit, and the remedy."""
    with loader.ImageLoader(listed, SQUARE, workers=workers, limits=ALLOWED) as images:
        good = {row.row: row for row in iter_rows(images, 0, 12)}
    poison(listed, hostile_images.ABORTS, 1)
    poison(listed, hostile_images.SEGFAULTS, 4)
    poison(listed, hostile_images.HANGS, 5)
    poison(listed, hostile_images.EXITS, 11)
    bounds = limits.Limits(accept_changed=True, seconds=0.2)
    with loader.ImageLoader(listed, SQUARE, workers=workers, batch=5, limits=bounds) as images:
        got = list(iter_rows(images, 0, 12))
    assert [row.row for row in got] == list(range(12))
    failures = {row.row: (str(row.failure), row.cause) for row in got if row.failure}
    assert set(failures) == {1, 4, 5, 11}
    assert "crashes its decoder (SIGABRT" in failures[1][0]
    assert "crashes its decoder (SIGSEGV" in failures[4][0]
    assert "timed out after 0.2 s" in failures[5][0]
    assert "--image-timeout" in failures[5][0]
    assert "crashes its decoder (exit code 0" in failures[11][0]
    assert [failures[row][1] for row in (1, 4, 5, 11)] == ["image", "image", "file", "image"]
    for row in got:
        if row.pixels is not None:
            assert row.pixels.equal(good[row.row].pixels)
            assert (row.affine, row.sha256) == (good[row.row].affine, good[row.row].sha256)


@pytest.mark.slow
def test_an_image_that_was_only_slow_is_read_at_the_second_try(
    listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fork_workers: Callable[[], None]
) -> None:
    real, hang = decode.decode_image, hostile_images.install(monkeypatch, tmp_path / "hanging")

    def slow_once(data: bytearray, **options: int) -> object:
        try:
            (tmp_path / "seen").mkdir()
        except FileExistsError:
            return real(data, **options)
        hang()
        return None

    monkeypatch.setattr(decode, "decode_image", slow_once)
    fork_workers()
    with loader.ImageLoader(listed, SQUARE, limits=limits.Limits(accept_changed=True, seconds=0.2)) as images:
        assert [row.failure for row in iter_rows(images, 0, 12)] == [None] * 12


@pytest.mark.slow
def test_time_in_which_nobody_waits_does_not_count(
    listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fork_workers: Callable[[], None]
) -> None:
    """A model that computes for a minute between two batches ages no image."""
    real, go, done = decode.decode_image, tmp_path / "go", tmp_path / "done"
    begun, second, computing, ticks = tmp_path / "begun", tmp_path / "second", threading.Event(), threading.Semaphore(0)

    def waits(data: bytearray, **options: int) -> object:
        if begun.exists():
            second.touch()
            await_file(go)
            done.touch()
        begun.touch()
        return real(data, **options)

    def passes(_pool: decode_pool.DecodePool) -> bool:
        if computing.is_set():
            ticks.release()
        return computing.is_set()

    monkeypatch.setattr(decode, "decode_image", waits)
    own_time(monkeypatch, passes)
    kill: list[int] = []
    monkeypatch.setattr(decode_pool.DecodePool, "_kill_hung", lambda _self, worker: kill.append(worker.process))
    fork_workers()
    bounds = limits.Limits(accept_changed=True, seconds=0.2)
    with loader.ImageLoader(listed, SQUARE, workers=1, batch=1, limits=bounds) as images:
        for row in iter_rows(images, 0, 2):
            assert row.failure is None
            if row.row == 0:
                await_file(second)
                computing.set()
                for _ in range(math.ceil(2 * bounds.seconds / (2 * decode_pool._TICK)) + 1):  # twice the limit
                    ticks.acquire()
                computing.clear()
                go.touch()
                await_file(done)
    assert not kill


def await_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("hostile")
def test_many_hanging_images_are_no_images_fault(listed: manifest.Manifest) -> None:
    """A volume that stopped answering must not make every row unreadable."""
    poison(listed, hostile_images.HANGS, *range(12))
    with (
        loader.ImageLoader(listed, SQUARE, workers=6, limits=limits.Limits(accept_changed=True, seconds=0.2)) as images,
        pytest.raises(decode_pool.TooManyHung, match=r"consecutive images timed out.*--image-timeout"),
    ):
        list(iter_rows(images, 0, 12))


@pytest.mark.slow
def test_workers_killed_from_outside_cost_no_row(listed: manifest.Manifest) -> None:
    """At any moment, many times: every row is there once, in order, and as it is without.

    Not faster than rows come, else a busy machine loses one row again and again, which is want of memory.
    """
    chance = random.Random(9)
    with loader.ImageLoader(listed, SQUARE, workers=3, batch=5, limits=ALLOWED) as images:
        expected = list(iter_rows(images, 0, 12))
        stop, came = threading.Event(), threading.Event()
        killed = 0

        def kill() -> None:
            nonlocal killed
            while not stop.wait(chance.uniform(0.0, 0.05)):
                if not came.wait(0.1):
                    continue
                came.clear()
                found = workers_of(images)
                if found:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(found), chance.choice((signal.SIGKILL, signal.SIGTERM)))
                        killed += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            while killed < 30:
                got = []
                for row in iter_rows(images, 0, 12):
                    got.append(row)
                    came.set()
                same(got, expected)
        finally:
            stop.set()
            killer.join()


def same(got: list[Row], expected: list[Row]) -> None:
    assert [row.row for row in got] == [row.row for row in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.failure is None
        assert one.pixels is not None
        assert one.pixels.equal(other.pixels)
        assert (one.sha256, one.affine) == (other.sha256, other.affine)


@pytest.mark.slow
def test_a_row_whose_workers_are_killed_each_time_is_no_fault_of_its_own(
    listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None]
) -> None:
    """So ends a worker for want of memory: the shard fails, and the row is not recorded as unreadable."""
    monkeypatch.setattr(decode, "decode_image", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    fork_workers()
    with (
        loader.ImageLoader(listed, SQUARE) as images,
        pytest.raises(ChildProcessError, match=r"killed externally 8 times \(SIGKILL\).*--decode-workers"),
    ):
        list(iter_rows(images, 0, 12))


@pytest.mark.slow
@pytest.mark.parametrize("forked", [False, True])
def test_a_lost_server_costs_no_row(listed: manifest.Manifest, fork_workers: Callable[[], None], forked: bool) -> None:
    """Its workers end with it; a new one takes over."""
    if forked:
        fork_workers()
    with loader.ImageLoader(listed, SQUARE, batch=3, limits=ALLOWED) as images:
        expected = list(iter_rows(images, 0, 12))
        server = decode_server.running()
        workers = workers_of(images)
        os.kill(server._process, signal.SIGKILL)
        end = time.monotonic() + 300
        while (
            any(Path(f"/proc/{worker}/fd").exists() and _command(worker) for worker in workers)
            and time.monotonic() < end
        ):
            time.sleep(0.01)
        same(list(iter_rows(images, 0, 12)), expected)
        assert decode_server.running() is not server
        assert not set(workers) & set(workers_of(images))


@pytest.mark.parametrize("forked", [False, True])
def test_a_stopped_server_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, fork_workers: Callable[[], None], forked: bool
) -> None:
    monkeypatch.setattr(decode_server, "EXIT_SECONDS", 0.2)
    if forked:
        fork_workers()
    server = decode_server.running()
    os.kill(server._process, signal.SIGSTOP)
    server.close()
    assert not Path(f"/proc/{server._process}").exists()
    assert decode_server.running() is not server


ORPHANS = """
import sys, time
from pathlib import Path
from genenc_core import spec
from genenc_core.cli import extraction
from genenc_core.images.load import decode_server, loader
from genenc_core.images.sources import manifest
if sys.argv[2] == "forked":
    decode_server.prepare()
listed = manifest.Manifest.open(Path(sys.argv[1]))
images = loader.ImageLoader(listed, spec.Preprocessing(height=24, width=32), workers=2)
batch = next(images.iter_batches(0, 12))
workers = [worker.process for worker in images._pool._workers.values()]
print(decode_server.running()._process, *workers, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["forked", "spawned"])
def test_no_worker_outlives_a_process_that_is_killed(listed: manifest.Manifest, how: str) -> None:
    command = [sys.executable, "-c", ORPHANS, str(listed.path), how]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with forked.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        children = [int(number) for number in parent.stdout.readline().split()]
        assert len(children) >= 2
        parent.kill()
    end = time.monotonic() + 300
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < end:
        time.sleep(0.05)
    alive = [child for child in children if "genenc" in _command(child)]
    assert not alive


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def test_full_temporary_folder_costs_no_image(listed: manifest.Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/1/nowhere")
    with loader.ImageLoader(listed, SQUARE) as images:
        assert [row.failure for row in iter_rows(images, 0, 12)] == [None] * 12
